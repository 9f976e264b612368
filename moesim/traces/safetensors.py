"""The safetensors container, read without trust and without a framework.

Layout: eight bytes little-endian header length, a JSON header ``{name: {dtype, shape,
data_offsets}}`` with free text under ``__metadata__``, then the tensors back to back. Everything a
file claims is compared with its real size before any memory is reserved, and tensors are views of
one read-only memory map.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.files import write_chunks
from moesim.units import MIB

MAX_HEADER_BYTES = 16 * MIB
MAX_TENSORS = 4096
MAX_DIMENSIONS = 8
_LENGTH_BYTES = 8
_DTYPES = {
    "BOOL": "?",
    "U8": "u1",
    "I8": "i1",
    "U16": "<u2",
    "I16": "<i2",
    "F16": "<f2",
    "U32": "<u4",
    "I32": "<i4",
    "F32": "<f4",
    "U64": "<u8",
    "I64": "<i8",
    "F64": "<f8",
}
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}


def read_tensors(
    path: Path, *, max_tensors: int = MAX_TENSORS
) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Tensors of a file as read-only memory-mapped views, and its free text.

    Raises
    ------
    InputError
        The file is not a whole, well-formed safetensors file; says what was found and accepted.
    """
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(0)
            header = _header(file.read(_LENGTH_BYTES), size_bytes, path)
            document = _json(file.read(header), path)
    except OSError as error:
        _refuse(path, f"cannot be read: {error.strerror or error}")
    start = _LENGTH_BYTES + header
    text = document.pop("__metadata__", {})
    if not isinstance(text, dict) or not all(isinstance(v, str) for v in text.values()):
        _refuse(path, "__metadata__ is not a mapping of words to words")
    if len(document) > max_tensors:
        _refuse(path, f"header names {len(document)} tensors; accepted: at most {max_tensors}")
    spans = {name: _span(name, entry, size_bytes - start, path) for name, entry in document.items()}
    _check_cover(spans, size_bytes - start, path)
    if size_bytes == start:
        return {n: np.empty(shape, dtype) for n, (_, _, shape, dtype) in spans.items()}, text
    raw = np.memmap(path, np.uint8, "r", offset=0)
    tensors = {}
    for name, (begin, end, shape, dtype) in spans.items():
        # a plain view keeps the map alive through its base and is cheaper to slice than np.memmap
        tensors[name] = np.asarray(raw[start + begin : start + end]).view(dtype).reshape(shape)
    return tensors, text


@dataclass(frozen=True, slots=True)
class Streamed:
    """A tensor that arrives in pieces along its first dimension.

    Attributes
    ----------
    dtype : numpy.dtype
        Type of the values.
    shape : tuple of int
        Shape of the whole.
    pieces : callable
        Gives the pieces in order; their rows sum to ``shape[0]``.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Callable[[], Iterable[NDArray[Any]]]


def whole(array: NDArray[Any]) -> Streamed:
    """A tensor that arrives in one piece."""
    return Streamed(array.dtype, array.shape, lambda: (array,))


def write_tensors(path: Path, tensors: Mapping[str, NDArray[Any]], text: Mapping[str, str]) -> Path:
    """Write tensors atomically; the bytes depend on the content only."""
    return write_streamed(path, {name: whole(array) for name, array in tensors.items()}, text)


def write_streamed(path: Path, tensors: Mapping[str, Streamed], text: Mapping[str, str]) -> Path:
    """Write tensors that need not fit in memory, atomically; the bytes depend on the content only.

    Wide types come first, so that every tensor starts at a multiple of its item size.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(text.items()))}
    at = 0
    for name in order:
        tensor = tensors[name]
        end = at + math.prod(tensor.shape) * tensor.dtype.itemsize
        kind = _NAMES[tensor.dtype.newbyteorder("<")]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    encoded += b" " * (-len(encoded) % _LENGTH_BYTES)

    def content() -> Iterator[bytes]:
        yield len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded
        for name in order:
            for piece in tensors[name].pieces():
                yield np.ascontiguousarray(piece, tensors[name].dtype.newbyteorder("<")).tobytes()

    return write_chunks(path, content())


def _header(first: bytes, size_bytes: int, path: Path) -> int:
    """Length of the JSON header, known to lie inside the file. [bytes]"""
    if len(first) < _LENGTH_BYTES:
        _refuse(
            path, f"{size_bytes} bytes long; accepted: a safetensors file (at least {_LENGTH_BYTES} bytes)"
        )
    length = int.from_bytes(first, "little")
    rest = size_bytes - _LENGTH_BYTES
    if not 2 <= length <= min(rest, MAX_HEADER_BYTES):
        accepted = f"2 to {min(rest, MAX_HEADER_BYTES)} in a file of {size_bytes} bytes"
        _refuse(path, f"header length {length}; accepted: {accepted} (truncated, or not safetensors)")
    return length


def _json(encoded: bytes, path: Path) -> dict[str, Any]:
    try:
        document = json.loads(encoded.decode(), object_pairs_hook=_no_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        _refuse(path, f"header is not JSON: {said}")
    if not isinstance(document, dict):
        _refuse(path, f"header is a JSON {type(document).__name__}; accepted: an object")
    return document


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        message = "a key occurs twice"
        raise ValueError(message)
    return result


def _span(
    name: str, entry: Any, data_bytes: int, path: Path
) -> tuple[int, int, tuple[int, ...], np.dtype[Any]]:
    """First byte, end byte, shape and type of a tensor, checked against the bytes there are."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, "entry is not {dtype, shape, data_offsets}", name)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        _refuse(path, f"dtype {dtype!r}; accepted: {', '.join(_DTYPES)}", name)
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        _refuse(path, f"shape {_short(shape)}; accepted: at most {MAX_DIMENSIONS} whole numbers >= 0", name)
    if not _whole_numbers(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= data_bytes:
        _refuse(
            path, f"data_offsets {_short(offsets)}; accepted: [begin, end] within {data_bytes} bytes", name
        )
    kind = np.dtype(_DTYPES[dtype])
    needed, present = math.prod(shape) * kind.itemsize, offsets[1] - offsets[0]
    if needed != present:
        _refuse(
            path, f"{dtype} of shape {_short(shape)} needs {needed} bytes; data_offsets hold {present}", name
        )
    return offsets[0], offsets[1], tuple(shape), kind


def _check_cover(spans: Mapping[str, tuple[int, int, Any, Any]], data_bytes: int, path: Path) -> None:
    """Tensors must tile the data: no overlap, no hole, nothing behind the last."""
    at = 0
    for name, (begin, end, _, _) in sorted(spans.items(), key=lambda item: item[1][:2]):
        if begin != at:
            fault = "overlaps the tensor before it" if begin < at else "leaves a hole before it"
            _refuse(path, f"data_offsets begin at {begin}, which {fault}; accepted: {at}", name)
        at = end
    if at != data_bytes:
        _refuse(path, f"{data_bytes} bytes of data; accepted: the {at} bytes that the header describes")


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and v >= 0 for v in value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _refuse(path: Path, message: str, tensor: str = "") -> NoReturn:
    raise InputError([Problem(_short(tensor)[1:-1] if tensor else "", message, str(path))])
