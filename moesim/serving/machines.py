"""The smallest machine that has enough of a device: described, or a described one with more nodes."""

from __future__ import annotations

from functools import lru_cache

from moesim.errors import InputError, Problem
from moesim.hardware import load_cluster, load_device
from moesim.hardware.load import profile_names
from moesim.hardware.schema import Cluster

USUAL_FORMS = ("", "_sxm", "_sxm_80")
"""What a device's name ends in beyond what people write, the plain name first."""


def cluster_for(device: str, num_devices: int, *, where: str = "") -> Cluster:
    """Cluster or node of ``device`` with at least ``num_devices``, the smallest of them.

    Raises
    ------
    InputError
        Unknown device, or none of the described machines has so many of it.
    """
    known = profile_names()
    name = next((device + form for form in USUAL_FORMS if device + form in known), device)
    machines = _machines(name)
    if not machines:
        load_device(name)  # an unknown one is an error of its own, with the nearest names
    fitting = [cluster for cluster in machines if cluster.num_devices >= num_devices]
    if fitting:
        # the plainest of equal size: other names tell of something beside the devices
        return min(fitting, key=lambda cluster: (cluster.num_devices, len(cluster.name), cluster.name))
    sized = [cluster for cluster in machines if _size(cluster.name) and cluster.node.num_nics]
    if sized:
        largest = max(sized, key=lambda cluster: cluster.num_devices)
        num_nodes = -(-num_devices // largest.node.num_devices)
        stem = largest.name.removesuffix(_size(largest.name))
        return load_cluster(f"{stem}{num_nodes * largest.node.num_devices}")
    most = max((cluster.num_devices for cluster in machines), default=0)
    message = f"{num_devices} {name} wanted, the largest described machine has {most}, and none a network"
    raise InputError([Problem("num_devices", message, where)])


@lru_cache
def _machines(device: str) -> tuple[Cluster, ...]:
    start = f"{device.partition('_')[0]}_"
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


def _size(name: str) -> str:
    """Digits after the ``_x`` that a machine's name ends in; empty without."""
    size = name.rpartition("_x")[2]
    return size if size.isdigit() else ""
