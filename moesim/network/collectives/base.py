"""What an all-reduce algorithm sees of its group, and how one is chosen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.evidence import Estimate, Seconds
from moesim.network.fabric import AUTO, Fabric
from moesim.registry import Registry


@dataclass(frozen=True)
class Group:
    """Members of a collective and the links between them.

    Attributes
    ----------
    num_ranks, num_domains : int
        Members, and scale-up domains that they are in. [-]
    bytes_per_s, hop_s : float
        Reached rate of the slowest link class between members, one direction, and one hop. [bytes/s], [s]
    """

    num_ranks: int
    num_domains: int
    bytes_per_s: float
    hop_s: float

    @classmethod
    def of(cls, ranks: NDArray[np.int64], fabric: Fabric, family: str) -> Group:
        """Group of ``ranks``; rates as reached by collectives of ``family``.

        Between domains a ring enters and leaves each of them once for every port that its members there
        have, so that many members share what few would have to carry alone.
        """
        reached = fabric.efficiencies.families[family].bandwidth_fraction
        members = np.unique(fabric.domain[ranks], return_counts=True)[1]
        inside = fabric.scale_up_bytes_per_s * float(fabric.scale_up_speed[ranks].min()) * reached
        if len(members) == 1:
            return cls(len(ranks), 1, inside, fabric.scale_up_latency_s)
        between = fabric.nic_rate * fabric.slowest_port(ranks) * float(members.min())
        rate = min(inside, between) if members.max() > 1 else between
        return cls(len(ranks), len(members), rate, fabric.scale_out_latency_s)


class AllReduce(Protocol):
    """A way to sum a buffer over ranks.

    Attributes
    ----------
    is_usual : bool
        Whether ``auto`` may take it without having measured it.
    """

    is_usual: ClassVar[bool]

    def price(self, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate | None:
        """Time until every rank has the sum, ``(...)``; None where the algorithm does not apply."""
        ...


all_reduces: Registry[AllReduce] = Registry("all_reduce", "moesim.network.collectives")


def start_s(num_ranks: int, fabric: Fabric, family: str) -> float:
    """Fixed cost of a collective of ``family``: launch, and what each peer adds. [s]"""
    efficiency = fabric.efficiencies.families[family]
    return efficiency.base_s + efficiency.per_peer_s * (num_ranks - 1) if num_ranks > 1 else 0.0


def started(seconds: Seconds, group: Group, fabric: Fabric) -> Estimate:
    """Estimate of an all-reduce from its time on the links: with the fixed start, of roofline grade."""
    return fabric.estimate(start_s(group.num_ranks, fabric, "all_reduce") + seconds, "all_reduce")


def usual_formulas(payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> dict[str, Estimate]:
    """Estimates of all algorithms that are in common use and apply."""
    offers = {}
    for name, kind in all_reduces.items():
        found = kind().price(payload_bytes, ranks, fabric) if kind.is_usual else None
        if found is not None:
            offers[name] = found
    return offers


def unknown(name: str, ranks: NDArray[np.int64], fabric: Fabric) -> InputError:
    """Error of a name that is neither an algorithm for these ranks nor a measured library."""
    libraries = (
        [f.library for f in fabric.fits.collectives if f.collective == "all_reduce"] if fabric.fits else []
    )
    known = ", ".join([AUTO, *all_reduces.names(), *libraries])
    domains = len(np.unique(fabric.domain[ranks]))
    accepted = f"for {len(ranks)} ranks in {domains} scale-up domains one that applies of {known}"
    return InputError.at("network.all_reduce", name, accepted)
