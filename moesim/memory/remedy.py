"""What to do when a plan does not fit: the smallest change of each kind that does, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from moesim.errors import InfeasibleError
from moesim.memory.ledger import RESERVED_FRACTION, Ledger, Occupancy, ledger
from moesim.model.dtypes import Dtypes, bytes_per_element
from moesim.model.spec import ModelSpec
from moesim.parallel.plan import Plan, plan_problems
from moesim.units import fmt_bytes

DEVICES_MAX = 2048
"""Largest world that is tried."""

COLUMNS_MAX = 4

WEIGHT_FORMATS = ("fp8_block", "nvfp4", "mxfp4", "int4")
CACHE_FORMATS = ("fp8",)
"""Formats that serving engines load, the widest first."""


@dataclass(frozen=True, slots=True)
class Question:
    """Everything a ledger depends on, so that one thing can be varied.

    Attributes
    ----------
    model, plan, dtypes, occupancy
        As in :func:`moesim.memory.ledger.ledger`.
    capacity_bytes : float
        Of one device. [bytes]
    reserved_fraction : float
        Share of the capacity that is not the model's. [-]
    """

    model: ModelSpec
    plan: Plan
    dtypes: Dtypes
    occupancy: Occupancy
    capacity_bytes: float
    reserved_fraction: float = RESERVED_FRACTION

    def ledger(self) -> Ledger:
        """Memory of every rank."""
        return ledger(
            self.model,
            self.plan,
            self.dtypes,
            self.occupancy,
            capacity_bytes=self.capacity_bytes,
            reserved_fraction=self.reserved_fraction,
        )

    def fits(self) -> bool:
        """Whether the plan can run the model and no rank is over its capacity."""
        slots = self.model.num_experts + self.occupancy.redundant_experts if self.model.num_experts else 0
        return not plan_problems(self.plan, self.model, slots, DEVICES_MAX) and self.ledger().fits


def check(question: Question) -> Ledger:
    """Ledger of a question that fits.

    Raises
    ------
    InfeasibleError
        Some rank is over: need and have by part, and the smallest change of each kind that fits.
    """
    result = question.ledger()
    if result.fits:
        return result
    raise InfeasibleError(explanation(question, result))


def explanation(question: Question, result: Ledger) -> str:
    """Table of the fullest ranks, and what would fit."""
    stages = range(min(question.plan.pp, COLUMNS_MAX))
    ranks = sorted(
        (int(question.plan.stage_ranks(stage)[0]) for stage in range(question.plan.pp)),
        key=lambda rank: -result.need_bytes[rank],
    )[: len(stages)]
    over = int((result.free_bytes < 0).sum())
    worst = result.fullest_rank
    lines = [
        f"{question.model.name} does not fit: {over} of {question.plan.num_devices} ranks are over; "
        f"rank {worst} needs {fmt_bytes(result.need_bytes[worst])}, has {fmt_bytes(result.capacity_bytes)}"
    ]
    lines += ledger_lines(result, {f"rank {rank}": rank for rank in ranks})
    found = remedies(question)
    lines.append(
        "  fits with one of: " + "; ".join(found) if found else "  no single change that was tried would fit"
    )
    return "\n".join(lines)


def ledger_lines(result: Ledger, columns: Mapping[str, int]) -> list[str]:
    """Table of a ledger's entries: what each part takes, the sum, and what is there.

    Parameters
    ----------
    columns : mapping of str to int
        Entry of each column, by its heading.
    """
    entries = list(columns.values())
    rows = [("", *columns)]
    rows += [(name, *(fmt_bytes(size[entry]) for entry in entries)) for name, size in result.parts.items()]
    rows.append(("need", *(fmt_bytes(result.need_bytes[entry]) for entry in entries)))
    rows.append(("have", *(fmt_bytes(result.capacity_bytes) for _ in entries)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + "  ".join(
            [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]


def remedies(question: Question) -> list[str]:
    """Smallest change of each kind that fits, in words; kinds without one are left out.

    Tried: more attention data-parallel groups, tensor-parallel ranks or pipeline stages (experts
    spread over all ranks of the stage; sequences of a group unchanged), narrower experts, narrower
    weights, a narrower cache, fewer replicas, fewer sequences of a group.
    """
    kinds: list[Iterator[tuple[str, Question]]] = [
        _plans(question, "attention_dp", lambda p, n: Plan.of(p.tp, p.pp, n, moe_tp=p.moe_tp)),
        _plans(question, "tp", lambda p, n: Plan.of(n, p.pp, p.attention_dp, moe_tp=p.moe_tp)),
        _plans(question, "pp", lambda p, n: replace(p, pp=n)),
        _formats(question, "experts"),
        _formats(question, "weights"),
        _formats(question, "kv"),
        _fewer_replicas(question),
    ]
    found = []
    for candidates in kinds:
        match = next((text for text, changed in candidates if changed.fits()), None)
        if match is not None:
            found.append(match)
    sequences = sequences_that_fit(question)
    if 0 < sequences < question.occupancy.num_sequences:
        found.append(f"at most {sequences} sequences in a group")
    return found


def sequences_that_fit(question: Question) -> int:
    """Most sequences of one attention group, at the question's context, that no rank is over with. [-]

    0 when the weights and buffers alone do not fit. The step's tokens stay as they are.
    """
    low, high = 0, 1

    def good(number: int) -> bool:
        return replace(question, occupancy=replace(question.occupancy, num_sequences=number)).fits()

    if not good(0):
        return 0
    while good(high) and high < SEQUENCES_MAX:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return low


SEQUENCES_MAX = 2**24
"""Where the search for the most sequences ends (a model whose state does not grow, say)."""


def _plans(
    question: Question, degree: str, larger: Callable[[Plan, int], Plan]
) -> Iterator[tuple[str, Question]]:
    plan = question.plan
    start = getattr(plan, degree)
    most = DEVICES_MAX * start // plan.num_devices
    for number in range(start + 1, most + 1):
        changed = larger(plan, number)
        text = f"plan.{degree}={number} (ep={changed.ep}, {changed.num_devices} devices)"
        yield text, replace(question, plan=changed)


def _formats(question: Question, part: str) -> Iterator[tuple[str, Question]]:
    """Narrower formats, the widest first."""
    if part == "experts" and not question.model.num_experts:
        return
    now = bytes_per_element(getattr(question.dtypes, part))
    for name in CACHE_FORMATS if part == "kv" else WEIGHT_FORMATS:
        if bytes_per_element(name) < now:
            dtypes = replace(question.dtypes, **{part: name})
            yield f"dtypes.{part}={name}", replace(question, dtypes=dtypes)


def _fewer_replicas(question: Question) -> Iterator[tuple[str, Question]]:
    for number in range(question.occupancy.redundant_experts - 1, -1, -1):
        occupancy = replace(question.occupancy, redundant_experts=number)
        yield f"{number} redundant experts", replace(question, occupancy=occupancy)
