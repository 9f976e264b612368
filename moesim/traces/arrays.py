"""Arrays of foreign files, read without trust: ``.npy``, ``.npz``, ``.safetensors`` and ``.pt``.

Nothing is unpickled: numpy files hold plain numbers or are refused, torch files are read by
``torch.load(weights_only=True)``. What a header claims is compared with the bytes that are there.
"""

from __future__ import annotations

import ast
import io
import math
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.files import write_bytes
from moesim.traces.safetensors import read_tensors
from moesim.units import GIB

MAX_MEMBER_BYTES = 32 * GIB
"""No member of an archive may unpack to more."""
_DTYPE = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
MAX_HEADER_BYTES = 65_536
_SHORT = 80


def fault(path: Path, message: str, field: str = "") -> InputError:
    """Error about one file."""
    return InputError([Problem(field[:_SHORT], message, str(path))])


def read_bytes(path: Path) -> bytes:
    """Content of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise fault(path, f"cannot be read: {error.strerror or error}") from None


def npy_array(content: bytes, path: Path, field: str = "") -> NDArray[Any]:
    """Numbers of the bytes of a ``.npy`` file.

    Raises
    ------
    InputError
        Not that format, objects instead of numbers, or more or fewer bytes than the shape needs.
    """
    length_bytes = {1: 2, 2: 4, 3: 4}.get(content[6] if len(content) > 6 else 0)
    if content[:6] != b"\x93NUMPY" or length_bytes is None:
        raise fault(path, "is not a .npy array of numbers", field)
    start = 8 + length_bytes
    end = start + int.from_bytes(content[8:start], "little")
    if end > min(len(content), MAX_HEADER_BYTES):
        raise fault(path, "ends within its header (truncated?)", field)
    try:
        header = ast.literal_eval(content[start:end].decode("latin1").strip())
        shape, fortran, kind = header["shape"], header["fortran_order"], header["descr"]
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError):
        raise fault(path, "header is not that of a .npy array of numbers", field) from None
    if not isinstance(kind, str) or not _DTYPE.fullmatch(kind) or not isinstance(fortran, bool):
        raise fault(path, f"holds {str(kind)[:_SHORT]}; accepted: an array of plain numbers", field)
    if not isinstance(shape, tuple) or len(shape) > 8 or any(type(n) is not int or n < 0 for n in shape):
        raise fault(path, f"shape {str(shape)[:_SHORT]}; accepted: whole numbers >= 0", field)
    dtype = np.dtype(kind)
    needed = math.prod(shape) * dtype.itemsize
    if needed != len(content) - end:
        message = f"shape {str(shape)[:_SHORT]} needs {needed} bytes; there are {len(content) - end}"
        raise fault(path, message, field)
    flat = np.frombuffer(content, dtype, offset=end)
    return flat.reshape(shape[::-1]).T if fortran else flat.reshape(shape)


def npy_bytes(array: NDArray[Any]) -> bytes:
    """Bytes of a ``.npy`` file."""
    stream = io.BytesIO()
    npy.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Arrays of a file by name; a single array is called ``""``.

    Raises
    ------
    InputError
        Unknown ending, malformed file, or torch missing for ``.pt``.
    """
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return {"": npy_array(read_bytes(path), path)}
    if suffix == ".npz":
        return _npz(path)
    if suffix == ".safetensors":
        return read_tensors(path)[0]
    if suffix in (".pt", ".pth"):
        from moesim.traces.torch_file import read_torch  # noqa: PLC0415

        found = read_torch(path)
        if isinstance(found, np.ndarray):
            return {"": found}
        if isinstance(found, Mapping):
            return {str(k): v for k, v in found.items() if isinstance(v, np.ndarray)}
        raise fault(path, "holds no tensor; accepted: a tensor or a dictionary of tensors")
    raise fault(path, f"ends in {suffix!r}; accepted: .npy, .npz, .safetensors, .pt")


def write_array(path: Path, name: str, array: NDArray[Any]) -> Path:
    """Write one array as ``.npy``, or as ``.pt`` under ``name`` (``""`` for a bare tensor)."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return write_bytes(path, npy_bytes(array))
    if suffix in (".pt", ".pth"):
        from moesim.traces.torch_file import write_torch  # noqa: PLC0415

        return write_torch(path, {name: array} if name else array)
    raise fault(path, f"ends in {suffix!r}; accepted: .npy, .pt", "--out")


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            if sum(m.file_size for m in members) > MAX_MEMBER_BYTES:
                raise fault(path, f"unpacks to more than {MAX_MEMBER_BYTES} bytes")
            contents = {m.filename.removesuffix(".npy"): archive.read(m) for m in members}
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        OverflowError,
    ):
        raise fault(path, "is not a whole .npz archive") from None
    arrays = {}
    for name, content in contents.items():
        if _is_text(content):
            continue
        arrays[name] = npy_array(content, path, name)
    return arrays


def _is_text(content: bytes) -> bool:
    """Whether a ``.npy`` member holds words, which no reader needs."""
    return b"'<U" in content[:128] or b"'|S" in content[:128]
