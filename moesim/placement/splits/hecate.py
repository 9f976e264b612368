"""Hecate: loaded experts are materialised on more ranks, and tokens stay near (arXiv:2502.02581)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.network.traffic import near_copies
from moesim.placement.placed import Floats, Placement, serving
from moesim.placement.split_registry import Batch, Served, splits

Holders = NDArray[np.bool_]


@splits.register("hecate")
@dataclass(frozen=True)
class Hecate:
    """Sparse materialisation: copies for a step of the experts with most tokens, local ones preferred.

    Parameters
    ----------
    slots : int
        Foreign experts that a rank has room for in a layer. [-]
    everywhere : int
        Experts whose copies other work of the layer hides: if there is room for them, all ranks get these and
        no others (section 4.2); ``training.papers.hecate.overlap_degree`` says how many. [-]
    rematerialise : bool
        Copies are dropped after the forward pass of a layer and sent again for its backward pass.

    Notes
    -----
    Loads are known before the layer (the paper predicts them from five iterations), so copies travel under
    what comes before the experts.
    """

    slots: Annotated[int, Field(ge=0)] = 4
    everywhere: Annotated[int, Field(ge=0)] = 0
    rematerialise: bool = False

    @property
    def foreign_experts(self) -> int:
        """Most copies that a rank holds in a layer. [-]"""
        return self.everywhere if 0 < self.everywhere <= self.slots else self.slots

    def serve(self, batch: Batch, placement: Placement, rng: np.random.Generator) -> Served:
        """Deterministic; transient copies are extra slots of the returned placement."""
        node, total = batch.node_of_rank, batch.total
        degree = self.everywhere or self.slots + 1  # more than there is room for: slots are filled by load
        held = np.stack(
            [
                materialise(placement.resident[layer].T, total[layer], degree, self.slots, node).T
                for layer in range(placement.num_layers)
            ]
        )
        shares = np.stack([near_first(copies, node) for copies in held])
        served = serving(held, shares)
        return Served(served, served.slot_share[None], near_first=True, ahead=True, twice=self.rematerialise)


def near_first(held: Holders, node: NDArray[np.int64]) -> Floats:
    """Share of each expert's tokens on every rank when all ranks send alike, ``(expert, rank)``. [-]

    A rank with a copy keeps its own tokens; others send evenly to the copies of their node, or to all.

    Parameters
    ----------
    held : ndarray of bool, ``(expert, rank)``
    node : ndarray of int, ``(rank,)``
    """
    shares = held.astype(np.float64)
    for one in np.unique(node):
        without = (~held[:, node == one]).sum(axis=1)
        shares += without[:, None] * near_copies(held, node, one)
    return np.asarray(shares / held.shape[-1])


def materialise(owned: Holders, loads: Floats, hidden: int, slots: int, node: NDArray[np.int64]) -> Holders:
    """Who holds which expert in a step: sparse all-gather of the loaded ones.

    As many as other work hides go everywhere, if memory allows; else all slots are filled in order of load, a
    copy a node in each round, on the device of the node with the most room.

    Parameters
    ----------
    owned : ndarray, ``(device, expert)``
        Where every expert lives.
    loads : ndarray, ``(expert,)``
        Predicted rows. [rows]
    hidden : int
        Experts whose move other work hides. [-]
    slots : int
        Foreign experts that fit on a device. [-]
    node : ndarray of int, ``(device,)``
    """
    order = np.argsort(-loads, kind="stable")
    held = owned.copy()
    if hidden <= slots:
        held[:, order[:hidden]] = True
        return held
    room = np.full(len(node), slots)
    while True:
        before = room.sum()
        for expert in order:
            for one in np.unique(node):
                open_to = np.where((node == one) & ~held[:, expert], room, 0)
                device = int(open_to.argmax())
                if open_to[device]:
                    held[device, expert] = True
                    room[device] -= 1
        if room.sum() in (0, before):
            return held
