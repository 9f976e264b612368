"""The part of the GGUF container (version 2 and 3) that holds plain tensors, read without trust.

Layout: magic ``GGUF``, version, number of tensors and of key-value pairs, the pairs, the tensor
descriptions (name, dimensions with the fastest first, type, offset), padding, the data.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.arrays import fault, read_bytes

MAX_ITEMS = 1 << 20
"""Tensors, pairs, or entries of a list accepted."""
MAX_DEPTH = 4
_SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
_STRING, _LIST = 8, 9
_TENSOR_TYPES = {0: "<f4", 1: "<f2", 24: "i1", 25: "<i2", 26: "<i4", 27: "<i8", 28: "<f8"}


def read_gguf(path: Path, wanted: Callable[[str], bool]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Key-value pairs, and the unquantised tensors whose name is wanted (slowest dimension first).

    Raises
    ------
    InputError
        Not GGUF, truncated, or a claim beyond the end of the file.
    """
    cursor = _Cursor(read_bytes(path), path)
    if cursor.take(4) != b"GGUF":
        raise fault(path, "is not a GGUF file")
    version, tensors, pairs = cursor.unpack("<IQQ")
    if version not in (2, 3) or tensors > MAX_ITEMS or pairs > MAX_ITEMS:
        message = (
            f"version {version}, {tensors} tensors, {pairs} pairs; accepted: 2 or 3, at most {MAX_ITEMS}"
        )
        raise fault(path, message)
    found = {}
    for _ in range(pairs):
        key = cursor.text()
        (kind,) = cursor.unpack("<I")
        found[key] = cursor.value(kind, 0)
    described = []
    for _ in range(tensors):
        name = cursor.text()
        (rank,) = cursor.unpack("<I")
        if rank > 4:
            raise fault(path, f"{rank} dimensions; accepted: at most 4", name)
        shape = cursor.unpack(f"<{rank}Q")
        described.append((name, shape, *cursor.unpack("<IQ")))
    alignment = found.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= MAX_ITEMS:
        raise fault(path, f"got {alignment!r}"[:80], "general.alignment")
    start = -(-cursor.at // alignment) * alignment
    kept = {}
    for name, shape, kind, offset in described:
        if not wanted(name):
            continue
        if kind not in _TENSOR_TYPES:
            raise fault(path, f"type {kind}; accepted: {sorted(_TENSOR_TYPES)}", name)
        dtype = np.dtype(_TENSOR_TYPES[kind])
        needed = math.prod(shape) * dtype.itemsize
        begin = start + offset
        if begin + needed > len(cursor.content):
            raise fault(path, f"needs {needed} bytes at {begin}; the file ends before", name)
        flat = np.frombuffer(cursor.content, dtype, math.prod(shape), begin)
        kept[name] = flat.reshape(shape[::-1])
    return found, kept


@dataclass
class _Cursor:
    """Place in the bytes; never moves beyond their end."""

    content: bytes
    path: Path
    at: int = 0

    def take(self, size: int) -> bytes:
        if size > len(self.content) - self.at:
            raise fault(self.path, f"{size} bytes at {self.at}; the file ends before (truncated?)")
        self.at += size
        return self.content[self.at - size : self.at]

    def unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def text(self) -> str:
        (size,) = self.unpack("<Q")
        return self.take(size).decode("utf-8", "replace")

    def value(self, kind: int, depth: int) -> Any:
        if kind in _SCALARS:
            return self.unpack(_SCALARS[kind])[0]
        if kind == _STRING:
            return self.text()
        if kind == _LIST and depth < MAX_DEPTH:
            inner, size = self.unpack("<IQ")
            if size > min(MAX_ITEMS, len(self.content) - self.at):
                raise fault(self.path, f"list of {size}; the file ends before")
            return [self.value(inner, depth + 1) for _ in range(size)]
        raise fault(self.path, f"value of type {kind}; accepted: 0 to 12")
