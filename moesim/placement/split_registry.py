"""The kind of policy that splits a batch's tokens over the copies of an expert, while serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from moesim.placement.placed import Floats, Placement
from moesim.registry import Registry


@dataclass(frozen=True, eq=False)
class Batch:
    """What a policy sees of a batch: tokens by source, and where ranks are.

    Attributes
    ----------
    counts : ndarray of float64, ``(sources, layers, experts)``
        Tokens of each source rank that chose each expert. [tokens]
    node_of_rank : ndarray of int64, ``(ranks,)``
        Node of each rank.
    """

    counts: Floats
    node_of_rank: NDArray[np.int64]

    @property
    def total(self) -> Floats:
        """Tokens of each expert, ``(layers, experts)``. [tokens]"""
        return np.asarray(self.counts.sum(axis=0), np.float64)


@dataclass(frozen=True, eq=False)
class Served:
    """Who serves a batch.

    Attributes
    ----------
    placement : Placement
        The placement, with transient copies where the policy moves weights.
    split : ndarray of float64, ``(1 or sources, layers, slots)``
        Share of a source's tokens of an expert that goes to each slot; sums to one over its copies.
    near_first : bool
        A source with a copy of an expert serves its own tokens, others prefer copies of their node.
    ahead : bool
        Who gets copies is known before the layer's routing, so that other work can hide their way.
    twice : bool
        Copies travel again for the backward pass.
    """

    placement: Placement
    split: Floats
    near_first: bool = False
    ahead: bool = False
    twice: bool = False


class Split(Protocol):
    """A way to split tokens over copies; its dataclass fields are its parameters."""

    def serve(self, batch: Batch, placement: Placement, rng: np.random.Generator) -> Served:
        """Shares of every slot for one batch."""
        ...


@runtime_checkable
class Keeping(Protocol):
    """A split whose copies stay on their ranks for a step."""

    rematerialise: bool

    @property
    def foreign_experts(self) -> int:
        """Most copies that a rank holds in a layer. [-]"""


splits: Registry[Split] = Registry("split", "moesim.placement.splits")
