"""Captured rows on their way to a trace: one small file a batch beside the result, until all are there.

An interrupted capture leaves the batches that it finished and an old result as it was; the same
capture started again goes on behind them and gives the same bytes as one that was never interrupted.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.files import write_json
from moesim.traces.description import TraceInfo
from moesim.traces.interchange import json_value
from moesim.traces.safetensors import Streamed, read_tensors, whole, write_tensors
from moesim.traces.store import write_trace_streamed

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Spool:
    """Folder ``OUT.partial`` of one capture.

    Attributes
    ----------
    out : Path
        Trace file that comes of it.
    groups : sequence of ndarray
        Requests of each batch, in order of running.
    """

    out: Path
    groups: Sequence[NDArray[np.int64]]

    @property
    def folder(self) -> Path:
        """Where the batches are kept."""
        return self.out.with_name(f"{self.out.name}.partial")

    def open(self, manifest: Mapping[str, Any], *, restart: bool = False) -> int:
        """Start, or go on with, a capture; batches that are there already.

        Raises
        ------
        InputError
            What is there belongs to another capture.
        """
        path = self.folder / MANIFEST
        if restart and self.folder.exists():
            shutil.rmtree(self.folder)
        if not path.exists():
            write_json(path, dict(manifest))
            return 0
        begun = json_value(path)
        if begun != manifest:
            differing = (
                [key for key in manifest if begun.get(key) != manifest[key]]
                if isinstance(begun, dict)
                else ["manifest"]
            )
            message = f"holds another capture ({', '.join(differing) or 'other fields'} differ); accepted:"
            raise InputError(
                [Problem("--out", f"{message} the same command, or --restart", str(self.folder))]
            )
        done = 0
        while done < len(self.groups) and self._part(done).exists():
            done += 1
        return done

    def add(self, group: int, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Keep the rows of a batch.

        ``expert_ids`` and, if any, ``gate_weights`` are ``(requests, tokens, layers, slots)``;
        ``step_index`` and ``phase`` are ``(tokens,)``.
        """
        write_tensors(self._part(group), tensors, {})

    def finish(self, info: TraceInfo, domain_of: NDArray[np.uint8], manifest: Mapping[str, Any]) -> Path:
        """Write the trace and its manifest, in order of request, and remove the batches."""
        place = {
            int(request): (g, i) for g, group in enumerate(self.groups) for i, request in enumerate(group)
        }
        parts = [self._read(g, info.num_layers) for g in range(len(self.groups))]
        slots = max(part["expert_ids"].shape[3] for part in parts)
        lengths = np.array([parts[place[r][0]]["phase"].size for r in range(domain_of.size)])

        def rows(name: str) -> Iterator[NDArray[Any]]:
            for request in range(domain_of.size):
                group, index = place[request]
                yield _widened(parts[group][name][index], slots, name == "expert_ids")

        def along(name: str) -> Iterator[NDArray[Any]]:
            for request in range(domain_of.size):
                yield parts[place[request][0]][name]

        total = int(lengths.sum())
        shape = (total, info.num_layers, slots)
        ids = parts[0]["expert_ids"].dtype
        tensors = {
            "expert_ids": Streamed(ids, shape, lambda: rows("expert_ids")),
            "step_index": Streamed(np.dtype(np.int32), (total,), lambda: along("step_index")),
            "phase": Streamed(np.dtype(np.uint8), (total,), lambda: along("phase")),
        }
        small: dict[str, NDArray[Any]] = {
            "request_index": np.repeat(np.arange(lengths.size), lengths).astype(np.int32),
            "position": np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
            "domain_index": np.repeat(domain_of, lengths),
        }
        tensors |= {name: whole(array) for name, array in small.items()}
        if "gate_weights" in parts[0]:
            tensors["gate_weights"] = Streamed(np.dtype(np.float16), shape, lambda: rows("gate_weights"))
        write_trace_streamed(self.out, info, tensors)
        write_json(manifest_path(self.out), dict(manifest) | {"tokens": total})
        shutil.rmtree(self.folder)
        return self.out

    def _read(self, group: int, layers: int) -> dict[str, NDArray[Any]]:
        """Rows of one batch, memory-mapped; checked, as the file may be old."""
        path = self._part(group)
        tensors, _ = read_tensors(path)
        ids, phase = tensors.get("expert_ids"), tensors.get("phase")
        head = (len(self.groups[group]), None if phase is None else phase.size, layers)
        if ids is None or ids.ndim != 4 or ids.shape[:3] != head or "step_index" not in tensors:
            raise InputError([Problem("", "is not a batch of this capture; accepted: --restart", str(path))])
        return tensors

    def _part(self, group: int) -> Path:
        return self.folder / f"{group:06d}.safetensors"


def manifest_path(out: Path) -> Path:
    """Where the manifest of a trace lies."""
    return out.with_suffix(".manifest.json")


def _widened(rows: NDArray[Any], slots: int, ids: bool) -> NDArray[Any]:
    """Rows with empty slots at the end, ``(tokens, layers, slots)``."""
    missing = slots - rows.shape[2]
    if not missing:
        return rows
    fill = np.iinfo(rows.dtype).max if ids else 0
    return np.pad(rows, ((0, 0), (0, 0), (0, missing)), constant_values=fill)
