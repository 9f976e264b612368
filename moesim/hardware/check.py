"""Checks of profile files that go beyond their shape: sources, and numbers that cannot be right.

A what-if may ask for an implausible machine, so nothing here stops a run; sources are demanded of
profile files only, never of overrides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from moesim.errors import Problem, did_you_mean
from moesim.files import Tree
from moesim.hardware.schema import Device, source_in
from moesim.units import GIGA, fmt_quantity, unit_of

Keys: TypeAlias = tuple[str | int, ...]

BOUNDS: dict[str, tuple[float, float]] = {
    "flops_per_s": (GIGA, 1e17),
    "bytes_per_s": (1e8, 1e15),
    "bytes": (1e5, 1e15),
    "s": (0.0, 1e-2),
    "hz": (1e7, 1e10),
    "w": (0.0, 1e4),
    "usd": (1e-2, 1e2),
    "mm2": (1.0, 1e5),
}
"""Smallest and largest believable value of a number, by the unit in its name."""

FLOPS_PER_BYTE = (0.05, 5e3)
"""Believable ratio of a device's largest peak to its main memory's bandwidth."""

PEAK_STEPS: tuple[tuple[str, tuple[str, ...], float], ...] = (
    ("fp16", ("tf32",), 2.05),
    ("fp8", ("bf16", "fp16"), 2.05),
    ("int8", ("bf16", "fp16"), 4.1),
    ("mxfp4", ("fp8", "int8"), 3.4),
    ("nvfp4", ("fp8", "int8"), 3.4),
)
"""A narrower datatype is at most this much faster than the fastest wider one; else: a sparse figure?"""

UNSOURCED = {"schema_version"}


def own_source_problems(tree: Tree, references: tuple[Keys, ...] = (), *, base: Any = None) -> list[Problem]:
    """Numbers of a profile file without a source, and sources that name nothing.

    Parameters
    ----------
    tree : Tree
        Content of the file; parts below ``references`` are other profiles and not looked at.
    references : tuple of keys
        Places of other profiles.
    base : dict, optional
        Description that the file overrides; its fields may be named by a source, too.
    """
    sources = tree.data.get("sources") or {}
    if not isinstance(sources, dict):
        return []  # the schema tells
    problems = [
        Problem(path, "has no source; accepted: an entry of 'sources' for it or a part that holds it", place)
        for path, place in _numbers(tree, references)
        if not source_in(sources, path)
    ]
    known = set(_paths(tree.data)) | set(_paths(base or {}))
    for path in sources:
        if path not in known:
            message = f"names no field of this file{did_you_mean(path, known)}"
            problems.append(Problem(f"sources.{path}", message, tree.where(("sources", path))))
    return problems


def implausible(description: Tree, kind_path: str = "") -> list[Problem]:
    """Numbers of an inlined description that no machine has, each with its believable range."""
    problems = []
    for keys, value in description.leaves():
        unit = unit_of(quantity_name(keys))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if "sources" in keys or unit not in BOUNDS or not is_number:
            continue
        low, high = BOUNDS[unit]
        if not low <= value <= high:
            accepted = f"{fmt_quantity(low, unit)} to {fmt_quantity(high, unit)}"
            path = ".".join(map(str, (kind_path, *keys) if kind_path else keys))
            problems.append(Problem(path, f"got {value!r}; believable: {accepted}", description.where(keys)))
    return problems


def unlikely_peaks(device: Device) -> list[str]:
    """What looks wrong in the ratios between a device's numbers: sparse figures, slipped prefixes."""
    peaks = device.peak_flops_per_s
    notes = []
    for narrow, wider, limit in PEAK_STEPS:
        widest = max((peaks[dtype] for dtype in wider if dtype in peaks), default=0.0)
        if narrow in peaks and widest and peaks[narrow] > limit * widest:
            ratio = peaks[narrow] / widest
            notes.append(f"peak_flops_per_s.{narrow} is {ratio:.3g} times {' or '.join(wider)}: sparse?")
    intensity = max(peaks.values()) / device.main_memory.bandwidth_bytes_per_s
    low, high = FLOPS_PER_BYTE
    if not low <= intensity <= high:
        notes.append(f"{intensity:.3g} FLOP per byte of main memory; believable: {low:g} to {high:g}")
    return notes


def quantity_name(keys: Keys) -> str:
    """Name that carries the unit: the last key, or the one above it for mappings by datatype."""
    names = [key for key in keys if isinstance(key, str)]
    return names[-2] if len(names) > 1 and names[-2] == "peak_flops_per_s" else names[-1]


def _numbers(tree: Tree, references: tuple[Keys, ...]) -> Iterator[tuple[str, str]]:
    for keys, value in tree.leaves():
        if keys[0] in {"sources", *UNSOURCED} or any(keys[: len(r)] == r for r in references):
            continue
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield ".".join(map(str, keys)), tree.where(keys)


def _paths(data: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(data, dict):
        return
    for key, value in data.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        yield path
        if key != "sources":
            yield from _paths(value, path)
