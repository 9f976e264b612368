"""Machines: what devices, nodes and clusters are, and their profiles by name."""

from moesim.hardware.load import (
    Profile,
    load_cluster,
    load_device,
    load_node,
    profile_names,
    read_profile,
    resolve,
    resolve_cluster,
)
from moesim.hardware.schema import DTYPES, Cluster, Device, Host, Link, MemoryTier, Node, ScaleOut

__all__ = [
    "DTYPES",
    "Cluster",
    "Device",
    "Host",
    "Link",
    "MemoryTier",
    "Node",
    "Profile",
    "ScaleOut",
    "load_cluster",
    "load_device",
    "load_node",
    "profile_names",
    "read_profile",
    "resolve",
    "resolve_cluster",
]
