"""One layer as a mixed-integer program, with the even split or with shares to be found.

Even split (``y[e, c, g]`` slots of rank ``g`` hold expert ``e``, which has ``c`` copies)::

    min M   sum_g y[e,c,g] = c z[e,c]      sum_c z[e,c] = 1      sum_ec y[e,c,g] = S
            sum_ec (w[e] / c) y[e,c,g] <= M

Solved split (``f[e, g]`` share of expert ``e`` served by rank ``g``)::

    min M   sum_g f[e,g] = 1      f[e,g] <= y[e,g]      sum_e y[e,g] <= S      sum_e w[e] f[e,g] <= M

Ranks are interchangeable. Numbering them by the heaviest expert they hold puts the ``i``-th
heaviest expert on one of the ranks ``0..i`` when it has one copy, and a copy of the heaviest on
rank 0 always; both models say so to the solver.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.placement.milp import (
    SOLVER_TOLERANCE,
    Limits,
    Outcome,
    minimise,
    new_model,
    total,
    variable,
)
from moesim.placement.placed import Floats, Ints


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer and the best placement known for it.

    Attributes
    ----------
    loads : ndarray of float64, ``(experts,)``
        Tokens; their sum is positive. [tokens]
    held : ndarray of int64, ``(ranks, slots)``
        Expert in each slot of the start.
    bound : float
        Proven lower bound of the largest rank load. [tokens]
    incumbent : float
        Largest rank load of the start. [tokens]
    """

    loads: Floats
    held: Ints
    bound: float
    incumbent: float

    @property
    def scale(self) -> float:
        """Mean rank load, the unit of the models. [tokens]"""
        return float(self.loads.sum() / self.held.shape[0])

    def numbered(self) -> tuple[Ints, Ints]:
        """Ranks in the models' order, and the place of each expert when sorted by load."""
        order = np.argsort(-self.loads, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(order.size)
        return np.argsort(place[self.held].min(axis=1), kind="stable"), place


def copy_options(layer: Layer, max_variables: int) -> tuple[list[list[int]], bool]:
    """Numbers of copies to consider for each expert, and whether none is left out.

    Where all of them would need more than ``max_variables`` variables, an expert is offered its
    present number and those up to one more than its tokens need at the bound.
    """
    experts, (ranks, slots) = layer.loads.size, layer.held.shape
    replicas = ranks * slots - experts
    every = list(range(1, replicas + 2))
    if experts * len(every) * ranks <= max_variables:
        return [every] * experts, True
    now = np.bincount(layer.held.ravel(), minlength=experts)
    need = np.ceil(layer.loads / layer.bound).astype(int) + 1
    return [
        sorted({*range(1, min(n, replicas + 1) + 1), int(c)}) for n, c in zip(need, now, strict=True)
    ], False


def num_variables(options: Sequence[Sequence[int]], num_ranks: int) -> int:
    """Whole-number variables of the even model."""
    return sum(map(len, options)) * num_ranks


def solve_even(layer: Layer, options: Sequence[Sequence[int]], limits: Limits) -> tuple[Ints | None, Outcome]:
    """Experts by rank, ``(ranks, slots)``, for the even split; None without solution."""
    (ranks, slots), experts = layer.held.shape, layer.loads.size
    rank_order, place = layer.numbered()
    single = all(list(o) == [1] for o in options)
    now = np.stack([np.bincount(layer.held[g], minlength=experts) for g in rank_order], axis=1)
    model, top, start = _started(layer)
    y: dict[tuple[int, int, int], Any] = {}
    for e, counts in enumerate(options):
        picks = []
        for c in counts:
            chosen = float(now[e].sum() == c)
            for g in range(ranks):
                high = min(c, slots) if not single or g <= place[e] else 0
                y[e, c, g] = variable(model, f"y{e}_{c}_{g}", 0, high, whole=True)
                start[f"y{e}_{c}_{g}"] = chosen * float(now[e, g])
            if single:
                model += total([(y[e, 1, g], 1) for g in range(ranks)]) == 1
                continue
            pick = variable(model, f"z{e}_{c}", 0, 1, whole=True)
            start[f"z{e}_{c}"] = chosen
            picks.append((pick, 1))
            model += total([*((y[e, c, g], 1) for g in range(ranks)), (pick, -c)]) == 0
        if picks:
            model += total(picks) == 1
    hottest = int(place.argmin())
    model += total([(y[hottest, c, 0], 1) for c in options[hottest]]) >= 1
    for g in range(ranks):
        model += total([(v, 1) for (e, c, at), v in y.items() if at == g]) == slots
        load = [(v, float(layer.loads[e] / c / layer.scale)) for (e, c, at), v in y.items() if at == g]
        model += total([*load, (top, -1)]) <= 0
    outcome = _solved(model, layer, limits, start)
    return _decoded(outcome.values, options, ranks, slots), outcome


def _decoded(
    values: Mapping[str, float] | None, options: Sequence[Sequence[int]], ranks: int, slots: int
) -> Ints | None:
    if values is None:
        return None
    held = [
        [e for e, counts in enumerate(options) for c in counts for _ in range(round(values[f"y{e}_{c}_{g}"]))]
        for g in range(ranks)
    ]
    return np.array(held, np.int64) if all(len(h) == slots for h in held) else None


def solve_shares(
    layer: Layer, shares: Floats, limits: Limits, *, fixed: bool
) -> tuple[tuple[Ints, Floats] | None, Outcome]:
    """Experts by rank and their shares, each ``(ranks, slots)``, for the solved split.

    Parameters
    ----------
    layer : Layer
        The layer.
    shares : ndarray of float64, ``(experts, ranks)``
        Shares of the start.
    limits : Limits
        When to stop.
    fixed : bool
        Keep the experts where they are and find shares only: a linear program.
    """
    (ranks, slots), experts = layer.held.shape, layer.loads.size
    rank_order, place = layer.numbered()
    hottest = int(place.argmin())
    model, top, start = _started(layer)
    f, y = {}, {}
    for e in range(experts):
        for g, rank in enumerate(rank_order):
            here = bool((layer.held[rank] == e).any())
            high = float(here or not fixed)
            low = float(here) if fixed else float(e == hottest and g == 0)
            f[e, g] = variable(model, f"f{e}_{g}", 0, high, whole=False)
            y[e, g] = variable(model, f"y{e}_{g}", low, high, whole=True)
            start |= {f"f{e}_{g}": float(shares[e, rank]), f"y{e}_{g}": float(here)}
            model += total([(f[e, g], 1), (y[e, g], -1)]) <= 0
        model += total([(f[e, g], 1) for g in range(ranks)]) == 1
    for g in range(ranks):
        model += total([(y[e, g], 1) for e in range(experts)]) <= slots
        load = [(f[e, g], float(layer.loads[e] / layer.scale)) for e in range(experts)]
        model += total([*load, (top, -1)]) <= 0
    outcome = _solved(model, layer, limits, start)
    if outcome.values is None:
        return None, outcome
    share = np.array([[outcome.values[f"f{e}_{g}"] for g in range(ranks)] for e in range(experts)])
    keep = np.array([[outcome.values[f"y{e}_{g}"] > 0.5 for g in range(ranks)] for e in range(experts)])
    share = np.where(keep, np.maximum(share, 0.0), 0.0)
    return _slotted(share / share.sum(axis=1, keepdims=True), keep, slots), outcome


def _slotted(share: Floats, keep: np.ndarray[Any, np.dtype[np.bool_]], slots: int) -> tuple[Ints, Floats]:
    """Slots filled with the kept experts; a free slot repeats an expert of its rank without share."""
    ranks = share.shape[1]
    held, part = np.zeros((ranks, slots), np.int64), np.zeros((ranks, slots))
    for g in range(ranks):
        here = np.flatnonzero(keep[:, g])
        held[g] = np.resize(here if here.size else np.array([0]), slots)
        held[g, : here.size] = here
        part[g, : here.size] = share[here, g]
    return held, part


def _started(layer: Layer) -> tuple[Any, Any, dict[str, float]]:
    """Empty model whose objective is the largest rank load, and its part of the start."""
    model = new_model("placement")
    high = layer.incumbent / layer.scale
    top = variable(model, "M", min(layer.bound / layer.scale, high), high, whole=False)
    model += total([(top, 1)])
    return model, top, {"M": high}


def _solved(model: Any, layer: Layer, limits: Limits, start: dict[str, float]) -> Outcome:
    """Outcome with its bound in tokens, less the solver's tolerance."""
    outcome = minimise(model, limits, start)
    bound = outcome.dual_bound * layer.scale * (1 - SOLVER_TOLERANCE)
    return Outcome(outcome.values, bound, outcome.stopped_by)
