"""Who computes a layer's experts: registered policies, one file each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.registry import Registry

RESIDENT, LOAD, LOAD_LOW, ON_CPU, ON_PIM, SKIP = range(6)
"""Fates of an expert: computed where it is cached; copied in, whole or in low precision, and computed;
computed by the CPU or by near-memory units; left out."""

Fates = NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class LayerWork:
    """The experts that one pass needs in one layer, and when each engine is free.

    Attributes
    ----------
    tokens : ndarray of int64, ``(experts,)``
        Tokens of each. [tokens]
    present : ndarray of bool, ``(experts,)``
        Cached on the device, or on their way.
    ready_s : ndarray of float64, ``(experts,)``
        When a present expert can be used. [s]
    gate_share : ndarray of float64, ``(experts,)``
        Share of the gate weight; equal shares where it is not known. [-]
    device_s, cpu_s, pim_s : ndarray of float64, ``(experts,)``
        Time of each expert on each engine; infinite where there is none. [s]
    copy_s : ndarray of float64, ``(experts,)``
        Each expert, or what the device lacks of it, from where it lies over the link. [s]
    now_s, link_free_s, cpu_free_s : float
        Gate known; link and CPU through with earlier work. [s]
    """

    tokens: NDArray[np.int64]
    present: NDArray[np.bool_]
    ready_s: NDArray[np.float64]
    gate_share: NDArray[np.float64]
    device_s: NDArray[np.float64]
    cpu_s: NDArray[np.float64]
    pim_s: NDArray[np.float64]
    copy_s: NDArray[np.float64]
    now_s: float
    link_free_s: float
    cpu_free_s: float


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Fate of every expert ``(experts,)``, and the order in which engines take them."""

    fates: Fates
    order: NDArray[np.int64]


class Executor(Protocol):
    """A way to share a layer's experts out; its dataclass fields are its parameters."""

    @property
    def deferred(self) -> int:
        """CPU experts whose results a layer may take one layer later. [experts]"""
        ...

    def assign(self, work: LayerWork) -> Assignment:
        """Fate and order of every expert of ``work``."""
        ...


executors: Registry[Executor] = Registry("executor", "moesim.offload.executors")


def in_order(fates: Fates) -> Assignment:
    """Assignment in the order of the work."""
    return Assignment(fates, np.arange(fates.size))
