"""What reports say of the network: bytes and seconds of every link, and which algorithms moved them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.model.dtypes import bytes_per_element
from moesim.network.collectives.group import chosen_all_reduce
from moesim.network.exchanges.base import exchange
from moesim.network.fabric import AUTO
from moesim.network.fit_file import CollectiveFit, ExchangeFit
from moesim.network.topology import Topology
from moesim.scenario.build import Built
from moesim.steps.layers import Lane, StageBuilder

MOST_LINKS = 512
"""Of a block; further ones are left out of the view, the busiest first."""

BUSIEST = 5

LABELS = {
    "scale_up_out": "scale-up, out",
    "scale_up_in": "scale-up, in",
    "mesh": "mesh links",
    "pair": "bridges",
    "pcie_out": "PCIe, out",
    "pcie_in": "PCIe, in",
    "switch_out": "PCIe switch, up",
    "switch_in": "PCIe switch, down",
    "socket": "between sockets",
    "nic_out": "NIC, out",
    "nic_in": "NIC, in",
    "leaf_out": "leaf to spine",
    "leaf_in": "spine to leaf",
    "core": "core links",
}
"""What a block of links is called."""

Stages = Sequence[Sequence[Lane]]


def links_view(built: Built, batches: Sequence[Stages]) -> dict[str, Any] | None:
    """Bytes of dispatch and combine of one step on every link, mean over batches; None without any.

    Where something is slow or dead, also the seconds that the same traffic needs on sound links.
    """
    topology = built.machine.fabric.topology
    traffic = dispatched_bytes(built, batches)
    if built.plan.attention_dp == 1 or not traffic.any():
        return None
    loads = topology.link_bytes(traffic)
    seconds = loads / topology.capacity_bytes_per_s
    faults = built.scenario.faults
    sound: NDArray[np.float64] | None = None
    if not faults.is_empty:
        healthy = Topology.of(built.scenario.cluster)
        sound = healthy.link_bytes(traffic) / healthy.capacity_bytes_per_s
    blocks = []
    for name, place in topology.blocks.items():
        shown = place.stop - place.start <= MOST_LINKS and (
            loads[place].any() or (sound is not None and sound[place].any())
        )
        if shown:
            block: dict[str, Any] = {"name": name, "label": LABELS[name], "seconds": _plain(seconds[place])}
            blocks.append(block | ({} if sound is None else {"sound_seconds": _plain(sound[place])}))
    return {
        "note": "dispatch and combine of one step at datasheet rates, mean over routed batches",
        "busiest": [
            _row(topology, loads, seconds, int(k)) for k in np.argsort(-seconds, kind="stable")[:BUSIEST]
        ],
        "sound_busiest_s": None if sound is None else float(sound.max()),
        "blocks": blocks,
    }


def dispatched_bytes(built: Built, batches: Sequence[Stages]) -> NDArray[np.float64]:
    """Bytes that dispatch and combine of one step move between ranks, ``(rank, rank)``, mean over batches."""
    ranks = built.plan.num_devices
    total = np.zeros((ranks, ranks))
    hidden = built.model.routed_hidden
    there = hidden * bytes_per_element(built.scenario.dtypes.dispatch)
    back = hidden * bytes_per_element(built.dtypes.activations)
    for stages in batches:
        for index, lanes in enumerate(stages):
            place = np.ix_(built.plan.stage_ranks(index), built.plan.stage_ranks(index))
            for lane in lanes:
                if lane.routed is not None:
                    pairs = lane.routed.traffic.scale_up + lane.routed.traffic.scale_out
                    total[place] += (pairs * there + pairs.T * back) / len(batches)
    return total


def algorithms_view(built: Built, stages: Stages) -> list[dict[str, Any]]:
    """Algorithm, time and evidence of each kind of communication in the first stage that has it."""
    rows: dict[str, dict[str, Any]] = {}
    section = built.resolved.tree.data.get("network", {})
    for builder, lanes in zip(built.stages(), stages, strict=True):
        lane = lanes[0]
        for what, name, seconds, grade in _communication(built, builder, lane):
            asked = section.get("all_reduce" if what == "all-reduce" else "exchange", AUTO)
            row = {"what": what, "algorithm": name, "asked": asked, "seconds": seconds, "evidence": grade}
            rows.setdefault(what, row)
    return list(rows.values())


def _communication(built: Built, builder: StageBuilder, lane: Lane) -> list[tuple[str, str, float, str]]:
    found = []
    if builder.stage.tp > 1 or (builder.stage.attention_dp == 1 and len(builder.stage.ranks) > 1):
        payload = lane.tokens * built.model.hidden_size * bytes_per_element(built.dtypes.activations)
        members = builder.stage.ranks[: builder.stage.tp]
        name, estimate = chosen_all_reduce(payload, members, builder.fabric)
        found.append(("all-reduce", name, float(np.mean(estimate.seconds)), str(estimate.grade)))
    if builder.stage.dispatches and lane.routed is not None:
        for phase in ("dispatch", "combine"):
            name, estimate = exchange(builder.exchange_load(phase, lane, lane.routed), builder.fabric)
            found.append((phase, name, float(np.mean(estimate.seconds)), str(estimate.grade)))
    return found


def network_rows(built: Built) -> list[dict[str, Any]]:
    """Fits behind the communication times, each with its held-out median error."""
    fits = built.machine.fabric.fits
    if fits is None:
        return []
    found: dict[str, CollectiveFit | ExchangeFit] = {}
    found |= {f"{fit.collective}.{fit.library}": fit for fit in fits.collectives}
    found |= {fit.key.replace("/", "."): fit for fit in fits.exchanges}
    return [
        {
            "path": f"calibration.network.{fits.device}.{name}.median_ape",
            "value": fit.held_out.median_ape,
            "unit": "fraction",
            "grade": fits.grade,
            "source": fit.evidence.partition(": ")[2],
        }
        for name, fit in found.items()
    ]


def _row(
    topology: Topology, loads: NDArray[np.float64], seconds: NDArray[np.float64], link: int
) -> dict[str, Any]:
    return {
        "link": topology.link_names[link],
        "bytes": float(loads[link]),
        "bytes_per_s": float(topology.capacity_bytes_per_s[link]),
        "seconds": float(seconds[link]),
    }


def _plain(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.6g}") for value in values]
