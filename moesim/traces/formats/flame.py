"""FLAME-MoE's published captures: parquet files of one training checkpoint (needs pyarrow).

Layout (CMU-FLAME/FLAME-MoE-Traces): ``samples/*.parquet`` with column ``token_id``,
``actives/iter_N/layer_LL.parquet`` with columns ``scores`` and ``indices``, rows aligned.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.arrays import fault
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints, Request, build_trace
from moesim.traces.routing import RoutingTrace

MAX_TOKENS = 1 << 22
"""Rows read of each layer; a capture holds 52 million."""


@formats.register("flame")
@dataclass(frozen=True)
class Flame:
    """Folder ``actives/iter_N`` with one ``layer_LL.parquet`` a layer; its first 4 M rows."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """All rows as one request, with scores as gate weights."""
        files = {}
        for file in sorted(path.glob("layer_*.parquet")):
            match = re.fullmatch(r"layer_(\d{1,6})", file.stem)
            if match:
                files[int(match[1])] = file
        if not files:
            raise fault(path, "no layer_<number>.parquet in it")
        parts = [_layer(files[layer]) for layer in sorted(files)]
        if len({ids.shape for ids, _ in parts}) > 1:
            raise fault(path, "layers of different lengths")
        ids = np.stack([p[0] for p in parts], axis=1)
        weights = np.stack([p[1] for p in parts], axis=1)
        request = Request(ids, weights=weights)
        said = "FLAME-MoE capture (CMU-FLAME/FLAME-MoE-Traces)"
        return build_trace([request], sorted(files), hints, path=path, said=said)


def _layer(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
    try:
        import pyarrow as arrow  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError:
        raise fault(path, "needs pyarrow, which is not installed; run: pip install moesim[parquet]") from None
    try:
        file = parquet.ParquetFile(path)
        batch = next(file.iter_batches(MAX_TOKENS, columns=["indices", "scores"]))
        columns = [_matrix(batch.column(name)) for name in ("indices", "scores")]
    except (arrow.ArrowException, OSError, KeyError, StopIteration, ValueError, TypeError, AttributeError):
        raise fault(path, "accepted: parquet with list columns indices and scores") from None
    ids, scores = columns
    if ids.shape != scores.shape or ids.dtype.kind not in "iu" or scores.dtype.kind != "f":
        raise fault(path, f"got {ids.dtype} {ids.shape}, {scores.dtype} {scores.shape}", "indices, scores")
    return ids.astype(np.int64), scores.astype(np.float16)


def _matrix(column: Any) -> NDArray[Any]:
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)
