"""Routing of a training scenario: windows of its traffic, drawn for the texts of every microbatch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.evidence import rng_for
from moesim.model import ModelSpec
from moesim.parallel.train_plan import TrainPlan
from moesim.placement import Placement
from moesim.scenario.schema import Scenario
from moesim.scenario.traffic import load_traffic
from moesim.traces import RoutingTrace
from moesim.training.loads import Shares, balanced, shares_of

BALANCED = "balanced"
WINDOW_TOKENS = 1000
"""Fewest tokens that stand for the routing of a microbatch: fewer would show noise as imbalance. [tokens]"""
PLAIN_EXPERTS = 64
"""Models with fewer experts get as many times more generated tokens, which costs the same. With eight a rank
has one expert: 4,096 tokens would show 3 % of noise as imbalance, 32,768 show 1 %. [-]"""


@dataclass(frozen=True, eq=False)
class Windows:
    """Pieces of a scenario's traffic; whatever the plan, it is drawn from these.

    Attributes
    ----------
    counts : ndarray, ``(window, layer, expert)``, or None
        Token copies of each expert; None where every expert is alike. [tokens]
    warnings : tuple of str
        What the reader should know about the source.
    homes : Placement or None
        Where experts live by now; None: what the scenario says.
    """

    counts: NDArray[np.float64] | None
    warnings: tuple[str, ...] = ()
    homes: Placement | None = None


def windows_of(scenario: Scenario, model: ModelSpec) -> Windows:
    """Traffic of a scenario, in windows.

    Raises
    ------
    InputError
        Routing of a dense model, none of one with experts, or a trace of another shape.
    """
    routing = scenario.routing
    if (routing is None) != (model.num_experts == 0):
        need = "a dense model has no routing" if model.num_experts == 0 else "missing (the model has experts)"
        raise InputError([Problem("routing", need)])
    if routing is None or routing.generator == BALANCED:
        return Windows(None)
    # nothing is placed by what it has seen: both halves of the traffic are routing of microbatches
    wanted = WINDOW_TOKENS * routing.num_batches // 2
    longer = max(1, PLAIN_EXPERTS // model.num_experts)
    traffic = load_traffic(routing, model, wanted, scenario.seed, longer=longer)
    counts = np.array([w for trace in (traffic.fit, traffic.held_out) for w in _windows(trace)], np.float64)
    return Windows(evened(counts) if scenario.training.steered else counts, traffic.warnings)


def shares_under(windows: Windows, scenario: Scenario, model: ModelSpec, plan: TrainPlan) -> Shares:
    """Shares of the experts in every draw of routing, ``(draw, layer, expert)``.

    The experts of a group serve the texts of all its ranks at once: a draw is the sum of as many windows of
    the traffic.
    """
    if windows.counts is None or scenario.routing is None:
        return balanced(len(model.moe_layers), max(model.num_experts, 1))
    rng = rng_for(scenario.seed, "training/windows")
    size = (scenario.routing.num_batches, _texts(scenario, plan))
    drawn = rng.integers(len(windows.counts), size=size)
    return shares_of(windows.counts[drawn].sum(axis=1))


def evened(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Counts whose sum over windows is the same for every expert of a layer that has any.

    That is what a bias on each expert's score does that rises while its load is below the mean.
    """
    total = counts.sum(axis=0)
    return np.asarray(counts * (total.mean(axis=-1, keepdims=True) / np.maximum(total, 1.0)))


def _texts(scenario: Scenario, plan: TrainPlan) -> int:
    """Texts whose tokens meet in an expert-parallel group's microbatch. [-]"""
    section = scenario.training
    each = section.micro_batch_size / (plan.tp * plan.cp)
    packed = section.sequence_length / (section.text_tokens or section.sequence_length)
    return max(1, round(plan.ep * plan.etp * each * packed))


def _windows(trace: RoutingTrace) -> list[NDArray[np.int64]]:
    """Token copies of each expert in consecutive windows of a trace, ``(layer, expert)`` each."""
    draws = max(1, trace.num_tokens // WINDOW_TOKENS)
    size = trace.num_tokens // draws
    return [trace.window(i * size, (i + 1) * size).counts() for i in range(draws)]
