"""omni-infer: ``.npy`` placement patterns."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import InputError, Problem
from moesim.placement.engine_files import About, EngineFile, formats, placed_rows
from moesim.placement.placed import EMPTY
from moesim.placement.store import StoredPlacement
from moesim.traces.arrays import npy_array, read_bytes

MAX_COPIES = 10
"""omni-infer's own default ``max_redundant_per_expert``."""


@formats.register("omni")
@dataclass(frozen=True)
class Omni:
    """``.npy`` of 0 and 1, ``[devices, layers with experts, experts]``.

    Devices may hold different numbers of experts; two copies of an expert on one device are one.
    """

    def write(self, stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
        """Pattern of what every device holds."""
        placed = stored.placement
        pattern = np.ascontiguousarray(placed.resident.transpose(2, 0, 1).astype(np.int64))
        stream = io.BytesIO()
        np.save(stream, pattern, allow_pickle=False)
        notes = []
        lost = int(placed.is_held.sum() - placed.resident.sum())
        if lost:
            notes.append(f"{lost} second copies of an expert on one device cannot be told and are left out")
        most = int(placed.copies.max())
        if most > MAX_COPIES:
            notes.append(f"an expert has {most} copies; set max_redundant_per_expert above {MAX_COPIES}")
        return EngineFile(stream.getvalue(), tuple(notes))

    def read(self, path: Path, about: About) -> StoredPlacement:
        """Devices as wide as the fullest, other slots empty."""
        pattern = npy_array(read_bytes(path), path)
        wanted = (about.num_ranks, len(about.layer_indices), about.num_experts)
        is_binary = pattern.dtype.kind in "biu" and bool(((pattern == 0) | (pattern == 1)).all())
        if pattern.shape != wanted or not is_binary:
            accepted = f"0 and 1, (devices, layers, experts) = {wanted}"
            message = f"got {pattern.dtype} {pattern.shape}; accepted: {accepted}"
            raise InputError([Problem("pattern", message, path.name)])
        held = pattern.transpose(1, 0, 2).astype(np.bool_)
        widest = max(int(held.sum(axis=2).max()), 1)
        rows = np.full((*held.shape[:2], widest), EMPTY, np.int64)
        for at in np.ndindex(held.shape[:2]):
            experts = np.flatnonzero(held[at])
            rows[at][: experts.size] = experts
        return placed_rows(rows.reshape(len(rows), -1), about, path, "omni-infer pattern")
