"""Writing that is atomic and gives the same bytes for the same content."""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from moesim.errors import InputError, Problem


def to_json(document: Any) -> str:
    """JSON text with stable layout; NaN and infinities are refused (they are not JSON)."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_bytes(path: Path, content: bytes) -> Path:
    """Write through a temporary file in the same folder, so that an interrupted run leaves the old file."""
    return write_chunks(path, (content,))


def write_chunks(path: Path, chunks: Iterable[bytes]) -> Path:
    """:func:`write_bytes` of content that is never held in memory whole."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise InputError([Problem("", f"cannot write: {error}", str(path))]) from None
    try:
        with os.fdopen(handle, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def write_text(path: Path, text: str) -> Path:
    """UTF-8 text, atomically."""
    return write_bytes(path, text.encode())


def write_json(path: Path, document: Any) -> Path:
    """JSON document, atomically."""
    return write_text(path, to_json(document))


def write_gzip(path: Path, content: bytes) -> Path:
    """Gzip without time stamp or file name, so that the bytes depend on the content only."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
        file.write(content)
    return write_bytes(path, buffer.getvalue())
