"""The smallest described machine that has enough of a device."""

from __future__ import annotations

from functools import lru_cache

from moesim.errors import InputError, Problem, did_you_mean
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
    most = max((cluster.num_devices for cluster in machines), default=0)
    message = f"{num_devices} {name} wanted, the largest described machine has {most}"
    hint = did_you_mean(f"{name}_x{num_devices}", profile_names())
    raise InputError([Problem("num_devices", message + hint, where)])


@lru_cache
def _machines(device: str) -> tuple[Cluster, ...]:
    stem = device
    for suffix in FORM_FACTORS:
        stem = stem.removesuffix(suffix)
    names = [name for name in profile_names() if name != device and name.startswith(f"{stem}_")]
    found = []
    for name in names:
        try:
            cluster = load_cluster(name)
        except InputError:
            continue  # a device of that name
        if cluster.node.device.name == device:
            found.append(cluster)
    return tuple(found)
