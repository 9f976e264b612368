"""The best cost model that there is evidence for: fits of the device, of the nearest one, the roofline."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from moesim.errors import InputError
from moesim.files import find, listed, read_tree, validated
from moesim.hardware import load_device
from moesim.hardware.schema import Device
from moesim.kernels.cost import KernelCost, RooflineCost
from moesim.kernels.fit_file import DeviceFits, fitted_devices, load_fits
from moesim.kernels.fitted import FittedCost
from moesim.kernels.measured import MeasuredTable
from moesim.kernels.near_rows import near_rows

TRANSFER_ROOM = "calibration/transfer"
TRANSFER_FILE = "leave_one_out"

SAME_ARCHITECTURE = 0.15
"""Two devices whose arithmetic differs by less than this (ln) run the same kernels alike."""

NEAR = 1.5
"""Farther than this (ln of the datasheet figures) nothing is transferred from another generation."""


class Transfer(BaseModel):
    """Errors of fits moved to a device that they were not made on, measured leaving one out.

    Attributes
    ----------
    same_architecture, other : dict
        ``{family: sigma}`` for a target whose arithmetic is that of the source; for any other. [-]
    few_same_architecture, few_other : dict
        The same where a few rows of the target were fitted, pulled towards the source. [-]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    same_architecture: dict[str, float] = Field(min_length=1)
    other: dict[str, float] = Field(min_length=1)
    few_same_architecture: dict[str, float] = Field(default_factory=dict)
    few_other: dict[str, float] = Field(default_factory=dict)
    sources: dict[str, str]


def cost_of(device: Device, engine: str = "default", tables: Iterable[MeasuredTable] = ()) -> KernelCost:
    """Cost model of a device.

    Fits of its own; else those of the nearest measured GPU with the wider band that was
    measured when transferring; else the roofline.

    Parameters
    ----------
    device : Device
        Matched by name; its own datasheet figures are used, so that changed ones change the times.
    engine : str
        Whose kernels: an engine of the file of fits.
    tables : iterable of MeasuredTable
        Rows of the device to be looked up beside its own fits.

    Raises
    ------
    InputError
        The file of fits is broken, or does not know the engine.
    """
    roofline = RooflineCost(device)
    if device.name in fitted_devices():
        fits = _fits(device.name)
        fits.chosen(engine)
        return FittedCost(device, fits, roofline, engine, near=near_rows(fits, tables, device))
    near = nearest_fitted(device)
    if near is None:
        return roofline
    fits = _fits(near)
    usable = engine if engine in fits.engines else "default"
    least = transfer_sigma(device, load_device(near))
    return FittedCost(device, fits, roofline, usable, least)


def engine_or_default(device: Device, engine: str) -> str:
    """``engine`` where the fits that answer for a device know it, else ``default``."""
    source = device.name if device.name in fitted_devices() else nearest_fitted(device)
    return engine if source is not None and engine in _fits(source).engines else "default"


def nearest_fitted(device: Device) -> str | None:
    """Measured GPU whose datasheet is nearest, or None where none is near.

    Only between GPUs was the error of a transfer measured: nothing else is transferred.
    """
    if device.kind != "gpu" or not listed(TRANSFER_ROOM):
        return None
    return nearest_of(device, fitted_devices())


def nearest_of(device: Device, names: Iterable[str]) -> str | None:
    """Device among ``names`` whose datasheet is nearest; None where none is near.

    Of the same kind and maker; of the same generation of designs where there is one.
    """
    known: dict[str, Device] = {}
    for name in names:
        try:
            known[name] = load_device(name)
        except InputError:
            continue  # fits of a device that is described elsewhere
    akin = {n: d for n, d in known.items() if d.kind == device.kind and d.vendor == device.vendor}
    siblings = {n: d for n, d in akin.items() if d.architecture == device.architecture}
    distances = {n: _distance(device, d) for n, d in (siblings or akin).items()}
    near = min(distances, key=lambda n: (distances[n], n), default=None)
    return near if near is not None and (siblings or distances[near] < NEAR) else None


def is_same_architecture(left: Device, right: Device) -> bool:
    """Whether a unit of both, of one generation, does the same arithmetic in the same time and formats."""
    formats = set(left.peak_flops_per_s) ^ set(right.peak_flops_per_s)
    if formats or left.architecture != right.architecture:
        return False
    return _arithmetic(left, right) < SAME_ARCHITECTURE


def transfer_sigma(target: Device, source: Device) -> dict[str, float]:
    """Least sigma of each family when fits of ``source`` answer for ``target``."""
    transfer = _transfer()
    return transfer.same_architecture if is_same_architecture(target, source) else transfer.other


def few_rows_sigma(target: Device, source: Device) -> dict[str, float]:
    """Least sigma of each family when few rows of ``target`` were fitted, pulled towards ``source``."""
    transfer = _transfer()
    return transfer.few_same_architecture if is_same_architecture(target, source) else transfer.few_other


@lru_cache
def _transfer() -> Transfer:
    return validated(Transfer, read_tree(find(TRANSFER_FILE, TRANSFER_ROOM)))


@lru_cache
def _fits(name: str) -> DeviceFits:
    return load_fits(name)


def _arithmetic(left: Device, right: Device) -> float:
    peaks = [d.dense_peak_flops_per_s("bf16") / d.num_units for d in (left, right)]
    return abs(math.log(peaks[0] / peaks[1]))


def _distance(left: Device, right: Device) -> float:
    """|ln ratio| of the peak of a unit, less so of units and bandwidth; and formats that only one has."""
    units = abs(math.log(left.num_units / right.num_units))
    bandwidths = [d.main_memory.bandwidth_bytes_per_s for d in (left, right)]
    bandwidth = abs(math.log(bandwidths[0] / bandwidths[1]))
    formats = set(left.peak_flops_per_s) ^ set(right.peak_flops_per_s)
    return _arithmetic(left, right) + 0.5 * (units + bandwidth) + 0.1 * len(formats)
