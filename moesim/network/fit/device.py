"""All network fits of one device: from the tables of the public package, or from this machine's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from moesim.hardware import load_node
from moesim.hardware.load import UNDESCRIBED_FABRIC
from moesim.hardware.schema import Node
from moesim.network.fabric import local_link
from moesim.network.fit.collectives import fit_collectives
from moesim.network.fit.exchanges import fit_exchanges
from moesim.network.fit.tables import Table, collective_tables, exchange_tables, published_tables
from moesim.network.fit_file import ExchangeFit, NetworkFits

NODES = {
    "a100_sxm_80": "a100_x8",
    "h100_sxm": "h100_x8",
    "h200_sxm": "h200_x8",
    "b200_sxm": "b200_x8",
    "b300_sxm": "b300_x8",
    "gb200": "gb200_x4",
    "gb300": "gb300_x4",
    "l40s": "l40s_x8",
    "rtx_pro_6000": "rtx_pro_6000_x8",
}
"""Node profile whose links the package's tables of a device were measured over."""

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def fit_package(
    folder: Path, device: str, version: str, note: Callable[[str], None] = lambda text: None
) -> NetworkFits:
    """Network fits of a device from its folder of the package; ``version`` is the package's."""
    node = load_node(NODES[device])
    links = _links(node)
    collectives = fit_collectives(collective_tables(folder, device, version))
    note(f"{device}: curves of {len(collectives)} collectives")
    return NetworkFits(
        device=device,
        **links,
        collectives=tuple(collectives),
        exchanges=tuple(_exchanges(folder, device, version, links, note)),
        sources={
            "package": f"aiconfigurator-core {version} (PyPI, Apache-2.0)",
            "links": f"node profile {node.name}",
        },
    )


def fit_measured(measured: Iterable[Any], node: Node) -> NetworkFits | None:
    """Network fits from this machine's own measurements; None where no collective is among them.

    Parameters
    ----------
    measured : iterable
        Tables with ``family, source, dtype, device, columns, seconds, provenance``, as the harness wrote.
    node : Node
        Its links.
    """
    tables = [
        Table(
            family=table.family,
            source=table.source,
            dtype=table.dtype,
            device=table.device,
            columns={n: np.asarray(c, dtype=np.float64) for n, c in table.columns.items()},
            seconds=table.seconds,
            evidence=f"measured on this machine, {table.provenance.get('date', 'undated')}",
        )
        for table in measured
        if table.family in COLLECTIVES
    ]
    found = fit_collectives(tables)
    if not found:
        return None
    links = _links(node)
    return NetworkFits(
        device=node.device.name,
        **links,
        collectives=tuple(found),
        sources={"measurements": "moesim calibrate measure", "links": f"node profile {node.name}"},
    )


def _exchanges(
    folder: Path, device: str, version: str, links: dict[str, float], note: Callable[[str], None]
) -> list[ExchangeFit]:
    tables = exchange_tables(folder, device, version) + published_tables(device)
    return fit_exchanges(tables, links["scale_up_bytes_per_s"], links["nic_bytes_per_s"], note)


def _links(node: Node) -> dict[str, float]:
    """Datasheet links of the nodes that were measured, one switch between them."""
    local, nic = local_link(node), node.nic
    switch_s = float(UNDESCRIBED_FABRIC["latency_s"]) if nic else 0.0  # type: ignore[arg-type]
    return {
        "scale_up_bytes_per_s": local.bandwidth_bytes_per_s,
        "nic_bytes_per_s": nic.bandwidth_bytes_per_s * node.num_nics / node.num_devices if nic else 0.0,
        "scale_up_latency_s": local.latency_s,
        "scale_out_latency_s": nic.latency_s + switch_s if nic else 0.0,
    }
