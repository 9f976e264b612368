"""The unit overlap policies order: some local work, then at most one exchange that needs its result."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Demand, Instruction, Meet, Part, Run, Wait

COMPUTE, COMM = "compute", "comm"
STREAMS = (COMPUTE, COMM)


@dataclass(frozen=True, slots=True)
class Exchange:
    """A collective that follows a block's work.

    Attributes
    ----------
    part : Part
        What it is and how long each member takes.
    group : ndarray of int, ``(rank,)``
        Group number of each rank, -1 where a rank takes no part.
    demand : Demand, optional
        Links that it uses, where others are on them too.
    """

    part: Part
    group: NDArray[np.int64]
    demand: Demand | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """Local work on the compute stream, then an optional exchange on the communication stream.

    Attributes
    ----------
    layer : int or None
        Layer of the model, None for embedding and head.
    work : tuple of Part
        Operations in launch order.
    exchange : Exchange or None
        Starts when the work is done; the next block of the same batch needs its result.
    """

    layer: int | None
    work: tuple[Part, ...]
    exchange: Exchange | None = None

    def launch_work(self, ranks: NDArray[np.bool_] | None) -> list[Instruction]:
        """Instructions of the local work on ``ranks`` (None: all)."""
        return [Run(COMPUTE, self.work, layer=self.layer, ranks=ranks)] if self.work else []

    def launch_exchange(self, ranks: NDArray[np.bool_] | None) -> list[Instruction]:
        """Instructions of the exchange, ordered after everything issued so far on the compute stream."""
        if self.exchange is None:
            return []
        return [
            Wait(COMM, on=COMPUTE, ranks=ranks),
            Meet(
                COMM,
                self.exchange.group,
                (self.exchange.part,),
                layer=self.layer,
                demand=self.exchange.demand,
            ),
        ]


def await_exchange(ranks: NDArray[np.bool_] | None) -> list[Instruction]:
    """Instruction that holds the compute stream until all exchanges issued so far are done."""
    return [Wait(COMPUTE, on=COMM, ranks=ranks)]
