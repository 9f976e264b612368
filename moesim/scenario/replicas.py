"""What replicas are worth: slots they take from the KV cache, against the balance they give.

Every number of replicas is given as many sequences as its memory then holds (or fewer, where a
latency limit strikes first), and the step is simulated at that concurrency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from moesim.errors import InfeasibleError, InputError
from moesim.memory.remedy import Question
from moesim.scenario.build import build
from moesim.scenario.resolve import resolve
from moesim.scenario.result import Metric, Result
from moesim.scenario.run import run

KV_BLOCK_TOKENS = 16
"""Tokens of a cache block, as vLLM and SGLang count by default."""
LATENCY = "tpot_s"
RATE = "output_tokens_per_s"


@dataclass(frozen=True, slots=True)
class ReplicaPoint:
    """One number of replicas at the concurrency that it allows.

    Attributes
    ----------
    redundant_experts : int
        Replicas of a layer over all ranks. [-]
    expert_bytes : float
        Routed experts on a rank. [bytes]
    kv_blocks : int
        Cache blocks in use by a group's sequences. [-]
    sequences : int
        Concurrency of an attention group; 0 where not even one fits. [-]
    limited_by : {'memory', 'latency', 'request', 'weights'}
        What keeps the concurrency there.
    result : Result or None
        The simulated step.
    """

    redundant_experts: int
    expert_bytes: float
    kv_blocks: int
    sequences: int
    limited_by: str
    result: Result | None

    def metric(self, name: str) -> Metric | None:
        """Metric of the step, None where nothing fits."""
        return None if self.result is None else self.result.metrics[name]


def replica_sweep(
    name_or_path: str,
    numbers: Sequence[int],
    overrides: Sequence[str] = (),
    *,
    most_sequences: int | None = None,
    latency_s: float | None = None,
    tick: Callable[[str], None] = lambda name: None,
) -> list[ReplicaPoint]:
    """Points of a decode scenario, one a number of replicas.

    Parameters
    ----------
    name_or_path : str
        Scenario with ``question: decode_step``.
    numbers : sequence of int
        Replicas of a layer, over all ranks.
    overrides : sequence of str
        ``dotted.path=value``.
    most_sequences : int, optional
        Requests that there are for a group; default as many as fit.
    latency_s : float, optional
        Longest step allowed. [s]
    tick : callable
        Called with the name of every finished point.

    Raises
    ------
    InputError
        Not a decode scenario, or replicas that do not fill the ranks.
    """
    points = []
    for number in numbers:
        own = [*overrides, f"placement.redundant_experts={number}", "batch.tokens_per_rank=1"]
        try:
            built = build(resolve(name_or_path, own))
        except InfeasibleError:
            points.append(ReplicaPoint(number, 0.0, 0, 0, "weights", None))
            continue
        if built.scenario.question != "decode_step":
            raise InputError.at("question", built.scenario.question, "decode_step")
        sequences, limit = concurrency(built.memory, most_sequences), "request"
        if most_sequences is None or sequences < most_sequences:
            limit = "memory"
        own = own[:-1]
        result = _at(name_or_path, own, sequences)
        if latency_s is not None and result.metrics[LATENCY].value > latency_s:
            sequences, result = _under(name_or_path, own, sequences, latency_s)
            limit = "latency"
        context = built.scenario.batch.context_tokens + 1
        points.append(
            ReplicaPoint(
                number,
                float(built.ledger.parts["routed experts"].max()),
                sequences * -(-context // KV_BLOCK_TOKENS),
                sequences,
                limit,
                result if sequences else None,
            )
        )
        tick(f"{number} replicas")
    return points


def concurrency(question: Question, most: int | None = None) -> int:
    """Most sequences of a group that fit when each gets a token a step. [-]"""
    low, high = 1, 2

    def good(number: int) -> bool:
        occupancy = replace(question.occupancy, num_sequences=number, step_tokens=number)
        return (most is None or number <= most) and replace(question, occupancy=occupancy).fits()

    while good(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


def best(points: Sequence[ReplicaPoint]) -> ReplicaPoint:
    """Point with the most tokens a second; of equals the one with fewest replicas.

    Raises
    ------
    InfeasibleError
        Nothing fits.
    """
    found = [point for point in points if point.result is not None]
    if not found:
        message = "no number of replicas fits: the weights alone are larger than the memory"
        raise InfeasibleError(message)
    return max(found, key=lambda point: (rate(point), -point.redundant_experts))


def rate(point: ReplicaPoint) -> float:
    """Tokens a second of all groups; 0 where nothing fits. [tokens/s]"""
    metric = point.metric(RATE)
    return 0.0 if metric is None else metric.value


def _at(name: str, overrides: Sequence[str], sequences: int) -> Result:
    return run(resolve(name, [*overrides, f"batch.tokens_per_rank={sequences}"])).result


def _under(name: str, overrides: Sequence[str], most: int, latency_s: float) -> tuple[int, Result]:
    """Most sequences whose step is not longer than allowed; 0 if a single one's is."""
    low, high = 0, most
    kept = _at(name, overrides, 1)
    while high - low > 1:
        middle = (low + high) // 2
        result = _at(name, overrides, middle)
        if result.metrics[LATENCY].value <= latency_s:
            low, kept = middle, result
        else:
            high = middle
    return low, kept
