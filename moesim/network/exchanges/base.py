"""What an exchange moves, what an exchange algorithm answers, and how one is chosen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import GRADES, Estimate, Grade, Seconds
from moesim.network.all_to_all import port_bound_s
from moesim.network.curves import BEYOND_SIGMA_RATIO
from moesim.network.fabric import AUTO, Fabric, MessageStart
from moesim.network.fit_file import ExchangeFit
from moesim.network.forms import FORMS, Moved
from moesim.network.traffic import Deduplication, PortTokens
from moesim.registry import Registry

Phase = Literal["dispatch", "combine"]
FAMILY = "all_to_all"
SEEN_SLACK = 2.0


@dataclass(frozen=True)
class Load:
    """One phase of an exchange among a group of ranks.

    Attributes
    ----------
    phase : str
        ``dispatch`` or ``combine``.
    ports : PortTokens, each ``(..., rank)``
        Tokens through each port.
    row_bytes : float
        Payload of a token. [bytes]
    ranks : ndarray of int, ``(rank,)``
        Global numbers of the group.
    tokens_per_rank : float
        Tokens that a rank holds. [tokens]
    num_experts : int
        Expert slots of the layer. [-]
    deduplicate : str
        What ``ports`` count once.
    shared : ndarray, ``(..., shared link)``, optional
        Tokens on each of the topology's shared links; None: ports alone are known.
    """

    phase: Phase
    ports: PortTokens
    row_bytes: float
    ranks: NDArray[np.int64]
    tokens_per_rank: float
    num_experts: int
    deduplicate: Deduplication
    shared: NDArray[np.float64] | None = None

    @property
    def num_ranks(self) -> int:
        """Members of the group."""
        return len(self.ranks)

    def num_domains(self, fabric: Fabric) -> int:
        """Scale-up domains of the group."""
        return len(np.unique(fabric.domain[self.ranks]))

    def scale_up_bytes(self, fabric: Fabric) -> NDArray[np.float64]:
        """Through the busiest scale-up port, ``(...)``; a slow one counts for more. [bytes]"""
        loads = np.maximum(self.ports.scale_up_out, self.ports.scale_up_in)
        return fabric.worst_scale_up(loads, self.ranks) * self.row_bytes

    def nic_bytes(self, fabric: Fabric) -> NDArray[np.float64]:
        """Through the busiest NIC direction, ``(...)``; a slow or crowded one counts for more. [bytes]"""
        out, into = (
            fabric.worst_nic(load, self.ranks) for load in (self.ports.scale_out_out, self.ports.scale_out_in)
        )
        # without the loads of the leaf switches' links, every byte may have to cross them
        ratio = fabric.oversubscription_ratio if self.shared is None else 1.0
        return np.maximum(out, into) * self.row_bytes * ratio

    def domain_size(self, fabric: Fabric) -> float:
        """Mean members of the group in a scale-up domain. [-]"""
        return self.num_ranks / self.num_domains(fabric)

    def shared_s(self, fabric: Fabric) -> NDArray[np.float64] | float:
        """Time that the busiest shared link needs at the rate that links reach, ``(...)``. [s]"""
        topology = fabric.topology
        # traffic routed on a network with slow up-links, priced on the sound one: nothing there is shared
        if self.shared is None or self.shared.shape[-1] != len(topology.shared) or not len(topology.shared):
            return 0.0
        reached = topology.capacity_bytes_per_s[topology.shared] * fabric.efficiencies.nic_bandwidth_fraction
        return np.asarray((self.shared * self.row_bytes / reached).max(-1))


class Exchange(Protocol):
    """A way to move tokens to their experts and back; its fields are its parameters.

    Attributes
    ----------
    is_usual : bool
        Whether ``auto`` may take it without having measured it.
    deduplicates : str
        What it sends once, where nobody says otherwise.
    """

    is_usual: ClassVar[bool]
    deduplicates: ClassVar[Deduplication]

    def price(self, load: Load, fabric: Fabric) -> Estimate | None:
        """Time until every rank has everything, ``(...)``; None where the algorithm does not apply."""
        ...


exchanges: Registry[Exchange] = Registry("exchange", "moesim.network.exchanges")


def exchange(load: Load, fabric: Fabric) -> tuple[str, Estimate]:
    """Name and time of the algorithm that the fabric's communication names.

    ``auto``: of the algorithms that apply, those with the strongest evidence; of these the cheapest by the
    sum over all given loads. An algorithm is only compared on measured ground or if it is a usual one.

    Raises
    ------
    InputError
        Unknown name, or one that does not apply to this group and de-duplication.
    """
    name = fabric.communication.exchange
    if name != AUTO:
        found = _priced(
            exchanges.build(name, fabric.communication.exchange_params, field="network.exchange"),
            load,
            fabric,
        )
        if found is None:
            raise does_not_apply(name, load, fabric)
        return name, found
    offers: dict[str, Estimate] = {}
    for other, kind in exchanges.items():
        priced = _priced(kind(), load, fabric)
        if priced is not None and (kind.is_usual or GRADES.index(priced.grade) < GRADES.index("roofline")):
            offers[other] = priced
    return cheapest(offers)


def exchange_sms(fabric: Fabric) -> int:
    """Multiprocessors that the exchange in use keeps busy: its library's own number, or the given one. [-]"""
    name = fabric.communication.exchange
    own = getattr(exchanges.classes[name], "num_sms", None) if name in exchanges.names() else None
    return fabric.communication.sms if own is None else int(own)


def takes_rows_in_order(fabric: Fabric) -> bool:
    """Whether the exchange in use sends buffers of rows that lie in order of their destination.

    Somebody else then copies a row for each of its copies before dispatch, and sums these after combine.
    """
    name = fabric.communication.exchange
    return name in exchanges.names() and getattr(exchanges.classes[name], "rows_in_order", False)


def _priced(algorithm: Exchange, load: Load, fabric: Fabric) -> Estimate | None:
    """Price of an algorithm, but no less than the busiest shared link needs."""
    found = algorithm.price(load, fabric)
    if found is None or load.shared is None:
        return found
    return replace(found, seconds=np.maximum(found.seconds, load.shared_s(fabric)))


def cheapest(offers: dict[str, Estimate]) -> tuple[str, Estimate]:
    """Strongest evidence first, then the least time in sum; ties go to the first name."""
    best = min(
        sorted(offers),
        key=lambda name: (GRADES.index(offers[name].grade), float(np.sum(offers[name].seconds))),
    )
    return best, offers[best]


def does_not_apply(name: str, load: Load, fabric: Fabric) -> Exception:
    """Error of an algorithm that cannot move this load."""
    from moesim.errors import InputError  # noqa: PLC0415

    domains = load.num_domains(fabric)
    accepted = (
        f"an algorithm for {load.num_ranks} ranks in {domains} scale-up domain{'s' if domains > 1 else ''} "
        f"with network.deduplicate {load.deduplicate}, or auto"
    )
    return InputError.at("network.exchange", name, accepted)


def fitted(kernel: str, load: Load, fabric: Fabric) -> Estimate | None:
    """Estimate of a fitted kernel; None where the fabric has no fit of it."""
    domains = load.num_domains(fabric)
    between = "domains" if domains > 1 else "ranks"
    fit = fabric.fits.exchange(kernel, load.phase, between) if fabric.fits else None
    if fit is None:
        return None
    moved = Moved(
        tokens=load.tokens_per_rank,
        row_bytes=load.row_bytes,
        scale_up_bytes=load.scale_up_bytes(fabric),
        nic_bytes=load.nic_bytes(fabric),
        num_ranks=load.num_ranks,
        num_domains=domains,
        num_experts=load.num_experts,
        sms=fabric.communication.sms,
        scale_up_bytes_per_s=fabric.scale_up_bytes_per_s,
        nic_bytes_per_s=fabric.nic_bytes_per_s,
    )
    parameters = dict(fit.parameters)
    if "far" in parameters:  # a matter of the network's load there and then, not of the kernel
        parameters["far"] = fabric.communication.far_rate_fraction
    seconds = FORMS[fit.form].seconds(moved, parameters) + _notify_s(fit, load.num_ranks)
    seconds = seconds + fabric.extra_latency_s(between_domains=domains > 1)
    grade: Grade = fabric.fits.grade if fabric.fits else "roofline"
    ratio = fabric.fits.sigma_ratio if fabric.fits else 1.0
    return Estimate(np.asarray(seconds), FAMILY, grade, ratio * _sigma(fit, moved))


@dataclass(frozen=True)
class Rates:
    """What exchange kernels reach of the links, and their fixed costs, by the roofline's efficiencies."""

    scale_up_bytes_per_s: float
    nic_bytes_per_s: float
    base_s: float
    per_peer_s: float
    message: MessageStart

    @classmethod
    def of(cls, fabric: Fabric) -> Rates:
        """Of a fabric."""
        efficiency = fabric.efficiencies.families[FAMILY]
        return cls(
            fabric.scale_up_bytes_per_s * efficiency.bandwidth_fraction,
            fabric.nic_bytes_per_s * fabric.efficiencies.nic_bandwidth_fraction,
            efficiency.base_s,
            efficiency.per_peer_s,
            fabric.efficiencies.nic_message,
        )

    def scale_up_s(self, moved_bytes: Seconds, latency_s: float) -> NDArray[np.float64]:
        """Time of bytes through a scale-up port, 0 for none. [s]"""
        return port_bound_s(
            np.asarray(moved_bytes), bandwidth_bytes_per_s=self.scale_up_bytes_per_s, latency_s=latency_s
        )

    def nic_s(self, moved_bytes: Seconds, latency_s: float, peers: float) -> NDArray[np.float64]:
        """Time of bytes through a NIC to as many peers in other domains, 0 for none. [s]"""
        moved = np.asarray(moved_bytes)
        rate = self.nic_bytes_per_s or 1.0  # nothing is moved where there is no NIC
        starts_s = peers * self.message.seconds(moved / peers) if peers else 0.0
        bound_s = port_bound_s(moved, bandwidth_bytes_per_s=rate, latency_s=latency_s)
        return np.where(moved > 0, starts_s + bound_s, 0.0)


def _notify_s(fit: ExchangeFit, num_ranks: int) -> float:
    """Time of the kernel that announces counts, of the nearest measured number of ranks."""
    if not fit.notify_s:
        return 0.0
    return fit.notify_s[min(fit.notify_s, key=lambda known: abs(int(known) - num_ranks))]


def _sigma(fit: ExchangeFit, moved: Moved) -> float:
    """Sigma of the fit, wider beyond what was measured."""
    for name, (least, most) in fit.seen.items():
        value = float(getattr(moved, name))
        if most > 0 and not least / SEEN_SLACK <= value <= most * SEEN_SLACK:
            return fit.sigma * BEYOND_SIGMA_RATIO
    return fit.sigma
