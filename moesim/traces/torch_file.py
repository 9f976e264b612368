"""Torch files as numpy values; torch is imported inside the functions only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, Problem

MAX_DEPTH = 16
INSTALL = "pip install moesim[capture]"


def read_torch(path: Path) -> Any:
    """Content of a ``.pt`` file with tensors as arrays: numbers, words, lists and dictionaries only.

    Raises
    ------
    InputError
        Torch is not installed, the file is malformed, or it holds anything executable.
    """
    torch = _torch(path)
    if not path.is_file():
        raise InputError([Problem("", "no such file", str(path))])
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever a hostile file makes it raise
        said = (str(error).splitlines() or [type(error).__name__])[0][:120]
        message = f"cannot be read as tensors and plain values: {said}"
        raise InputError([Problem("", message, str(path))]) from None
    return _plain(torch, found, path, 0)


def write_torch(path: Path, content: Any) -> Path:
    """Write arrays, numbers, lists and dictionaries as a ``.pt`` file."""
    torch = _torch(path)

    def tensors(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return torch.from_numpy(np.array(value))
        if isinstance(value, dict):
            return {key: tensors(part) for key, part in value.items()}
        return [tensors(part) for part in value] if isinstance(value, list) else value

    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    torch.save(tensors(content), beside)
    return beside.replace(path)


def _plain(torch: Any, value: Any, path: Path, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise InputError([Problem("", "nested too deeply", str(path))])
    if isinstance(value, torch.Tensor):
        if value.is_sparse or value.is_quantized or value.device.type != "cpu":
            raise InputError([Problem("", "holds a tensor that is not plain and dense", str(path))])
        whole = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
        try:
            return whole.numpy()
        except (TypeError, RuntimeError) as error:
            raise InputError([Problem("", f"tensor cannot be read: {error}", str(path))]) from None
    if isinstance(value, dict):
        return {key: _plain(torch, part, path, depth + 1) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(torch, part, path, depth + 1) for part in value]
    return value


def _torch(path: Path) -> Any:
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        message = f"needs torch, which is not installed; run: {INSTALL}"
        raise InputError([Problem("", message, str(path))]) from None
    return torch
