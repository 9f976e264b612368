"""Which layers each chunk of the pipeline holds, and how many parameters that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from moesim.errors import InputError
from moesim.model.parameters import embedding_parameters, mtp_parameters
from moesim.model.spec import ModelSpec
from moesim.parallel.train_plan import TrainPlan
from moesim.training.memory import layer_parameters

Layout = tuple[tuple[int, ...], ...]
"""Layers of each part of the model in order; a part may hold none."""


@dataclass(frozen=True, slots=True)
class PartParameters:
    """Numbers that one rank keeps of one part, before states are sharded over replicas.

    Attributes
    ----------
    dense : float
        Attention, dense and shared parts, norms, tables; replicated over ``dp * cp`` ranks. [-]
    experts : float
        Routed experts; replicated over ``edp`` ranks. [-]
    """

    dense: float
    experts: float

    def __add__(self, other: PartParameters) -> PartParameters:
        return PartParameters(self.dense + other.dense, self.experts + other.experts)


def even(num_layers: int, num_parts: int) -> Layout:
    """Consecutive layers, as many in each part; those left over go to parts without embedding or head.

    Only when no other part is left do the first and the last get one more.
    """
    short, extra = divmod(num_layers, num_parts)
    sizes = np.full(num_parts, short)
    order = [*range(1, num_parts - 1), 0, num_parts - 1] if num_parts > 2 else list(range(num_parts))
    sizes[order[:extra]] += 1
    return _cut(sizes.tolist())


def weighted(weights: Sequence[float], num_parts: int, *, first: float = 0.0, last: float = 0.0) -> Layout:
    """Consecutive layers whose heaviest part is as light as can be.

    Parameters
    ----------
    weights : sequence of float
        Cost of each layer, any unit.
    num_parts : int
    first, last : float
        Cost of the embedding and of the head, same unit. Parts at the ends may end up without layers.
    """
    total = np.concatenate([[0.0], np.cumsum(weights)])
    count = len(weights)
    best = np.full((num_parts + 1, count + 1), np.inf)
    cut = np.zeros((num_parts + 1, count + 1), dtype=np.int64)
    best[0, 0] = 0.0
    for part in range(1, num_parts + 1):
        edge = (first if part == 1 else 0.0) + (last if part == num_parts else 0.0)
        for stop in range(count + 1):
            options = np.maximum(best[part - 1, : stop + 1], total[stop] - total[: stop + 1] + edge)
            cut[part, stop] = int(np.argmin(options))
            best[part, stop] = options[cut[part, stop]]
    sizes: list[int] = []
    stop = count
    for part in range(num_parts, 0, -1):
        sizes.append(stop - int(cut[part, stop]))
        stop = int(cut[part, stop])
    return _cut(sizes[::-1])


def given(sizes: Sequence[int], num_layers: int, num_parts: int) -> Layout:
    """Layout of these sizes.

    Raises
    ------
    InputError
        Not one size a part, a negative one, or another sum than the layers.
    """
    if len(sizes) != num_parts or min(sizes) < 0 or sum(sizes) != num_layers:
        accepted = f"{num_parts} sizes (pp * vpp), none negative, that add up to {num_layers} layers"
        raise InputError.at("plan.layers", list(sizes), accepted)
    return _cut(sizes)


def _cut(sizes: Sequence[int]) -> Layout:
    ends = np.cumsum(sizes)
    return tuple(tuple(range(int(end) - size, int(end))) for size, end in zip(sizes, ends, strict=True))


def part_parameters(
    model: ModelSpec, plan: TrainPlan, layers: Sequence[int], *, first: bool, last: bool, mtp: bool = False
) -> PartParameters:
    """Parameters of one part on one of its ranks.

    A tied table is kept on both the first and the last part unless they are the same.
    """
    hidden = model.hidden_size
    dense = experts = 0.0
    for index in layers:
        own = layer_parameters(model.layers[index], hidden, plan)
        dense, experts = dense + own[0], experts + own[1]
    tables = int(first) + int(last and not (model.tied_embeddings and first))
    dense += tables * embedding_parameters(model) / plan.tp + (hidden if last else 0)
    if last and mtp and model.mtp_layer is not None:
        own = layer_parameters(model.mtp_layer, hidden, plan)
        dense += own[0] + mtp_parameters(model) - model.mtp_layer.parameters(hidden)
        experts += own[1]
    return PartParameters(dense, experts)
