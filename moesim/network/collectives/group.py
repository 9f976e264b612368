"""Collectives over a described fabric: measured curves where there are any, else formulas."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Seconds
from moesim.network.collectives.base import Group, all_reduces, start_s, unknown, usual_formulas
from moesim.network.collectives.ring import ring_all_gather_s
from moesim.network.collectives.tree import tree_broadcast_s
from moesim.network.curves import collective_s
from moesim.network.fabric import AUTO, Fabric

HOST_LAUNCHED = "_eager"
"""Ending of libraries whose times hold the host's launch: compared only when named."""


def all_reduce(payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """All-reduce of ``payload_bytes`` among ``ranks``; see :func:`chosen_all_reduce`. [bytes] -> [s]"""
    return chosen_all_reduce(payload_bytes, ranks, fabric)[1]


def chosen_all_reduce(
    payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric
) -> tuple[str, Estimate]:
    """Name and time of the library or algorithm that the fabric's communication names.

    ``auto``: of the libraries measured on this fabric the fastest; where none was, of the usual formulas.

    Raises
    ------
    InputError
        Neither a library measured here nor an algorithm that applies to these ranks.
    """
    name = fabric.communication.all_reduce
    if len(ranks) == 1:
        return AUTO, fabric.estimate(0.0 * payload_bytes, "all_reduce")
    measured = _measured("all_reduce", payload_bytes, ranks, fabric)
    if name == AUTO:
        usual = {k: v for k, v in measured.items() if not k.endswith(HOST_LAUNCHED)}
        offers = usual or usual_formulas(payload_bytes, ranks, fabric)
        best = min(sorted(offers), key=lambda k: float(np.sum(offers[k].seconds)))
        return best, offers[best]
    if name in measured:
        return name, measured[name]
    known = name in all_reduces.names()
    found = all_reduces.build(name).price(payload_bytes, ranks, fabric) if known else None
    if found is None:
        raise unknown(name, ranks, fabric)
    return name, found


def all_gather(payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """All-gather whose output is ``payload_bytes`` on each of ``ranks``. [bytes] -> [s]"""
    return _ring_or_measured("all_gather", payload_bytes, ranks, fabric)


def reduce_scatter(payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """Reduce-scatter of an input of ``payload_bytes`` on each of ``ranks``. [bytes] -> [s]"""
    return _ring_or_measured("reduce_scatter", payload_bytes, ranks, fabric)


def broadcast(payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """Broadcast of ``payload_bytes`` from one of ``ranks`` to the others. [bytes] -> [s]"""
    group = Group.of(ranks, fabric, "send")
    seconds = tree_broadcast_s(
        payload_bytes, group.num_ranks, bandwidth_bytes_per_s=group.bytes_per_s, latency_s=group.hop_s
    )
    return fabric.estimate(start_s(len(ranks), fabric, "send") + seconds, "send")


def send(payload_bytes: Seconds, pair: NDArray[np.int64], fabric: Fabric) -> Estimate:
    """Point-to-point message between the two ranks of ``pair``. [bytes] -> [s]"""
    group = Group.of(pair, fabric, "send")
    seconds = start_s(len(pair), fabric, "send") + group.hop_s + payload_bytes / group.bytes_per_s
    return fabric.estimate(seconds, "send")


def _measured(
    collective: str, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric
) -> dict[str, Estimate]:
    """Estimates of the libraries measured on this fabric, by name; none between domains."""
    if fabric.fits is None or not fabric.is_one_domain(ranks):
        return {}
    ratio = fabric.link_ratio * float(fabric.scale_up_speed[ranks].min())
    found = {}
    for fit in fabric.fits.collectives:
        if fit.collective == collective:
            seconds, sigma = collective_s(fit, payload_bytes, len(ranks), None, ratio)
            seconds = seconds + fabric.extra_latency_s(between_domains=False)
            value = seconds if np.ndim(payload_bytes) else float(seconds)
            found[fit.library] = Estimate(
                value, collective, fabric.fits.grade, sigma * fabric.fits.sigma_ratio
            )
    return found


def _ring_or_measured(
    collective: str, payload_bytes: Seconds, ranks: NDArray[np.int64], fabric: Fabric
) -> Estimate:
    if len(ranks) > 1:
        measured = _measured(collective, payload_bytes, ranks, fabric)
        if "nccl" in measured:
            return measured["nccl"]
        if measured:
            return next(iter(measured.values()))
    group = Group.of(ranks, fabric, collective)
    seconds = ring_all_gather_s(
        payload_bytes, group.num_ranks, bandwidth_bytes_per_s=group.bytes_per_s, latency_s=group.hop_s
    )
    return fabric.estimate(start_s(len(ranks), fabric, collective) + seconds, collective)
