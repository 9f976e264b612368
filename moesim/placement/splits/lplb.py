"""LPLB: the split that minimises the largest rank load of the batch, by a linear program a layer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moesim.placement.milp import Limits, minimise, new_model, total, variable
from moesim.placement.placed import Floats, Ints, Placement
from moesim.placement.split_registry import Batch, Served, splits

TIME_LIMIT_S = 10.0
"""Never reached by a program of some dozens of variables; keeps a defect from hanging."""


@splits.register("lplb")
@dataclass(frozen=True)
class Lplb:
    """Optimal shares of every batch for the placement as it is.

    References
    ----------
    .. [1] DeepSeek-AI, LPLB, 2025, and its port in SGLang (dispatch algorithm ``lp``): minimise the largest
       load over splits of the replicated experts, once a batch and layer.
    """

    def serve(self, batch: Batch, placement: Placement, rng: np.random.Generator) -> Served:
        """Deterministic."""
        split = placement.slot_share.copy()
        for layer, row in enumerate(placement.physical_to_logical):
            shares = _solved(batch.total[layer], row, placement)
            if shares is not None:
                replicated = (row >= 0) & (placement.copies[layer][np.maximum(row, 0)] > 1)
                split[layer, replicated] = shares[replicated]
        return Served(placement, split[None])


def _solved(tokens: Floats, row: Ints, placement: Placement) -> Floats | None:
    """Share of each slot of a layer; None where there is nothing to choose."""
    copies = np.bincount(row[row >= 0], minlength=tokens.size)
    many = np.flatnonzero((copies > 1) & (tokens > 0))
    if not many.size:
        return None
    scale = float(tokens.sum()) / placement.num_ranks
    model = new_model("lplb")
    top = variable(model, "M", 0, None, whole=False)
    model += total([(top, 1)])
    terms: list[list[tuple[object, float]]] = [[] for _ in range(placement.num_ranks)]
    fixed = np.zeros(placement.num_ranks)
    share = {}
    for slot in np.flatnonzero(row >= 0):
        expert, rank = int(row[slot]), int(placement.rank_of_slot[slot])
        if copies[expert] == 1:
            fixed[rank] += tokens[expert] / scale
        elif tokens[expert] > 0:
            share[slot] = variable(model, f"f{slot}", 0, 1, whole=False)
            terms[rank].append((share[slot], float(tokens[expert] / scale)))
    for expert in many.tolist():
        model += total([(share[slot], 1) for slot in np.flatnonzero(row == expert)]) == 1
    for rank in range(placement.num_ranks):
        model += total([*terms[rank], (top, -1)]) <= -float(fixed[rank])
    outcome = minimise(model, Limits(TIME_LIMIT_S, 1, 0.0))
    if outcome.values is None:
        return None
    found = np.where(row >= 0, 1.0 / np.maximum(copies, 1)[np.maximum(row, 0)], 0.0)
    for expert in many.tolist():
        slots = np.flatnonzero(row == expert)
        part = np.maximum([outcome.values[f"f{slot}"] for slot in slots], 0.0)
        found[slots] = part / part.sum()
    return found
