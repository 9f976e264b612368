"""One scenario under several placements, side by side, on the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from moesim.placement import evaluate
from moesim.scenario.build import build
from moesim.scenario.resolve import Resolved
from moesim.scenario.run import Outcome, run_built
from moesim.scenario.schema import PlacementSection
from moesim.scenario.views import placement_label, placement_row


def compare_placements(resolved: Resolved, sections: Sequence[PlacementSection]) -> Outcome:
    """Outcome of the last placement, whose views hold all of them in the order given.

    Every placement sees the same fit traffic and is judged on the same held-out batches.
    """
    built = build(resolved)
    outcomes = [run_built(built.placed(section)) for section in sections]
    chosen = outcomes[-1]
    counts = np.array(chosen.result.views["expert_load"]["tokens"])
    variants, rows = [], []
    for section, outcome in zip(sections, outcomes, strict=True):
        solution = outcome.built.solution
        assert solution is not None  # a placement was asked for
        label = placement_label(outcome.built)
        if section.redundant_experts:
            label += f" +{section.redundant_experts}"
        loads = evaluate(counts, solution.placement).rank_loads
        variants.append({"label": label, "tokens": [[round(float(v), 3) for v in row] for row in loads]})
        metrics = {name: metric.document() for name, metric in outcome.result.metrics.items()}
        rows.append(placement_row(outcome.built, label, solution) | {"metrics": metrics})
    views = dict(chosen.result.views) | {"comparison": rows}
    views["rank_load"] = views["rank_load"] | {"variants": variants}
    return replace(chosen, result=replace(chosen.result, views=views))
