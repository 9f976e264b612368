"""Copies in and between memories; reading main memory and disk."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from .cases import Call, Case
from .shapes import log_points

BLOCK_BYTES = 1 << 22
ON_HOST = frozenset({"host", "ssd"})
"""Directions that no GPU takes part in."""


def copies(device: str, count: int, largest_bytes: float) -> Iterator[Case]:
    """Device to device, reading main memory, and on a GPU host to device and back, pinned and pageable."""
    kinds = [("d2d", 0), ("host", 0)]
    if device.startswith("cuda"):
        kinds += [(direction, pinned) for direction in ("h2d", "d2h") for pinned in (0, 1)]
    for shape in log_points(count, {"bytes": (4096, largest_bytes)}, {"bytes": 4096}):
        size = shape["bytes"]
        for direction, pinned in kinds:
            build = partial(_reads, size) if direction == "host" else partial(_copies, device, size)
            if direction != "host":
                build = partial(build, direction, pinned)
            features, labels = {"bytes": size, "pinned": pinned}, {"direction": direction}
            source = "torch_sum" if direction == "host" else "torch_copy"
            yield Case("copy", source, "uint8", features, build, 2.0 * size, labels)


def disk(folder: Path, count: int) -> Iterator[Case]:
    """Reading a file of ``folder``'s disk past the page cache."""
    for shape in log_points(count, {"bytes": (BLOCK_BYTES, 64 * BLOCK_BYTES)}, {"bytes": BLOCK_BYTES}):
        size = shape["bytes"]
        features, labels = {"bytes": size, "pinned": 0}, {"direction": "ssd"}
        yield Case("copy", "file_read", "uint8", features, partial(_disk_reads, folder, size), 0.0, labels)


def _copies(device: str, size: int, direction: str, pinned: int, number: int) -> list[Call]:
    import torch

    here, there = ("cpu" if direction == end else device for end in ("h2d", "d2h"))
    pairs = []
    for _ in range(number):
        ends = [torch.zeros(size, dtype=torch.uint8, device=where) for where in (here, there)]
        if pinned:
            ends = [t.pin_memory() if t.device.type == "cpu" else t for t in ends]
        pairs.append(ends)
    return [partial(target.copy_, source, non_blocking=True) for source, target in pairs]


def _reads(size: int, number: int) -> list[Call]:
    import torch

    values = [torch.ones(max(1, size // 4)) for _ in range(number)]
    return [partial(torch.sum, one) for one in values]


def _disk_reads(folder: Path, size: int, number: int) -> list[Call]:
    del number
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".disk-read-")
    os.unlink(name)  # the open file stays readable, and is gone when it is closed
    for _ in range(size // BLOCK_BYTES):
        os.write(descriptor, os.urandom(BLOCK_BYTES))
    os.fsync(descriptor)
    buffer = bytearray(BLOCK_BYTES)

    def read() -> None:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        for start in range(0, size, BLOCK_BYTES):
            os.preadv(descriptor, [buffer], start)

    weakref.finalize(read, os.close, descriptor)
    return [read]
