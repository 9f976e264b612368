"""Layouts of a training scenario side by side: what each step is made of, and what uneven experts add."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from moesim.metrics.breakdown import Share
from moesim.scenario.schema import Scenario
from moesim.scenario.train import breakdown_of
from moesim.scenario.train_search import ScenarioEstimator, own_candidate, row_of
from moesim.scenario.training import Common
from moesim.scenario.training_memory import ledger_of, memory_of
from moesim.training.overlaps.base import LENT
from moesim.training.step import TrainStep, balanced_setup
from moesim.training.tuning import Candidate, Found, Tuned

FASTEST = 4
"""Of the whole search that are shown."""

TIMED_OF_EACH = 3
"""Plans of an expert-parallel degree that are timed to find its fastest: those with the least bounds."""

EXPERTS, OTHER, AGAIN, HOST = "experts", "attention and the rest", "recomputation", "host launches"
EXCHANGE, TENSOR, STATES = "dispatch and combine", "tensor and context parallel", "gradients and parameters"
STAGES, BUBBLES, UNEVEN = "between stages", "bubbles", "uneven experts"
GROUPS = (EXPERTS, OTHER, AGAIN, HOST, EXCHANGE, TENSOR, STATES, STAGES, BUBBLES, UNEVEN)
"""What a step is made of, in the order of its picture; the last is what natural routing adds."""


def layouts_view(
    scenario: Scenario,
    common: Common,
    tuned: Tuned,
    progress: Callable[[str, int], None] = lambda what, count: None,
) -> dict[str, Any]:
    """The fastest plans, the fastest of each expert-parallel degree and the scenario's own, fastest first."""
    estimator = ScenarioEstimator(scenario, common)
    chosen: dict[Candidate, list[str]] = {}
    for rank, found in enumerate(tuned.best[:FASTEST]):
        chosen.setdefault(found.candidate, []).append("fastest" if rank == 0 else "among the fastest")
    for candidate in _of_each_degree(estimator, tuned):
        chosen.setdefault(candidate, []).append(f"fastest found with EP{candidate.plan.ep}")
    chosen.setdefault(own_candidate(scenario), []).append("as the scenario has it")
    rows = []
    for candidate, notes in chosen.items():
        rows.append(_row(estimator, candidate, "; ".join(notes)))
        progress("compared", 1)
    capacity, _ = memory_of(scenario)
    return {
        "capacity_bytes": capacity,
        "groups": list(GROUPS),
        "rows": sorted(rows, key=lambda row: float(row["step_s"])),
    }


def _of_each_degree(estimator: ScenarioEstimator, tuned: Tuned) -> Iterable[Candidate]:
    """Of each degree of expert parallelism that fits, the fastest of those with the least bounds."""
    for degree in sorted({one.candidate.plan.ep for one in tuned.fits}):
        own = [one.candidate for one in tuned.fits if one.candidate.plan.ep == degree][:TIMED_OF_EACH]
        known = [found.candidate for found in tuned.best if found.candidate.plan.ep == degree]
        yield known[0] if known else min(own, key=estimator.seconds)


def _row(estimator: ScenarioEstimator, candidate: Candidate, note: str) -> dict[str, Any]:
    """Seconds of one layout by group under even experts, what uneven ones add, and its memory."""
    setup = estimator.setup(candidate)
    step = TrainStep(setup)
    natural_s = float(step.run().makespan_s[0])
    even = TrainStep(balanced_setup(setup)) if setup.model.num_experts else step
    nominal = even.run()
    even_s = float(nominal.makespan_s[0])
    groups = dict.fromkeys(GROUPS, 0.0)
    for share in breakdown_of(even, nominal):
        groups[group_of(share)] += share.seconds
    groups[UNEVEN] = max(natural_s - even_s, 0.0)
    ledger = ledger_of(setup, *memory_of(estimator.scenario))
    fullest = ledger.fullest_rank
    found = Found(candidate, float(ledger.need_bytes.max()), natural_s)
    return row_of(found, estimator.scenario, estimator.common) | {
        "note": note,
        "balanced_step_s": even_s,
        "imbalance_cost_fraction": natural_s / even_s - 1.0,
        "bubble_fraction": float(nominal.bubble_fraction[0]),
        "groups": groups,
        "fullest_stage": int(fullest),
        "memory": {name: float(size[fullest]) for name, size in ledger.parts.items() if size[fullest]},
    }


def group_of(share: Share) -> str:
    """Group of a part of the breakdown."""
    named = {
        "experts": EXPERTS,
        "recompute": AGAIN,
        "host launches": HOST,
        LENT: EXCHANGE,
        "optimizer": STATES,
        "bubbles": BUBBLES,
    }
    if share.name in named:
        return named[share.name]
    if share.name.startswith(("gradient reduction", "parameter gather")):
        return STATES
    kinds = {"all_to_all": EXCHANGE, "send": STAGES}
    collectives: Sequence[str] = ("all_gather", "reduce_scatter", "all_reduce")
    return kinds.get(share.kind, TENSOR if share.kind in collectives else OTHER)
