"""The smallest machine that has enough of a device: described, or a described one with more nodes."""

from __future__ import annotations

from functools import lru_cache

from moesim.errors import InputError, Problem
from moesim.hardware import load_cluster, load_device
from moesim.hardware.load import profile_names
from moesim.hardware.schema import Cluster

FORM_FACTORS = ("_sxm", "_pcie", "_oam")
SPELLINGS = {"h100": "h100_sxm", "h200": "h200_sxm", "b200": "b200_sxm", "b300": "b300_sxm"}
"""What people write for the usual form of a device."""


def cluster_for(device: str, num_devices: int, *, where: str = "") -> Cluster:
    """Cluster or node of ``device`` with at least ``num_devices``, the smallest of them.

    Raises
    ------
    InputError
        Unknown device, or none of the described machines has so many of it.
    """
    name = SPELLINGS.get(device, device)
    machines = _machines(name)
    if not machines:
        load_device(name)  # an unknown one is an error of its own, with the nearest names
    fitting = [cluster for cluster in machines if cluster.num_devices >= num_devices]
    if fitting:
        return min(fitting, key=lambda cluster: (cluster.num_devices, cluster.name))
    largest = max(machines, key=lambda cluster: cluster.num_devices, default=None)
    if largest is not None and largest.node.num_nics:
        num_nodes = -(-num_devices // largest.node.num_devices)
        return load_cluster(f"{_stem(name)}_x{num_nodes * largest.node.num_devices}")
    most = 0 if largest is None else largest.num_devices
    message = f"{num_devices} {name} wanted, the largest described machine has {most} and no network"
    raise InputError([Problem("num_devices", message, where)])


@lru_cache
def _machines(device: str) -> tuple[Cluster, ...]:
    start = f"{_stem(device)}_"
    names = [name for name in profile_names() if name != device and name.startswith(start)]
    found = []
    for name in names:
        try:
            cluster = load_cluster(name)
        except InputError:
            continue  # a device of that name
        if cluster.node.device.name == device:
            found.append(cluster)
    return tuple(found)


def _stem(device: str) -> str:
    """What names of machines of ``device`` begin with."""
    for suffix in FORM_FACTORS:
        device = device.removesuffix(suffix)
    return device
