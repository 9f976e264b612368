"""ExFlow's traces: ``.npy`` of whole numbers ``[tokens, layers]``, one expert a token (YJHMITWEB/ExFlow)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.files import write_bytes
from moesim.traces.arrays import fault, npy_array, npy_bytes, read_bytes
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints, Request, build_trace, one_problem
from moesim.traces.replay import full_ids
from moesim.traces.routing import ExpertCounts, RoutingTrace


@formats.register("exflow")
@dataclass(frozen=True)
class Exflow:
    """``.npy`` of top-1 choices ``[tokens, layers]``; request limits are not known."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """All rows as one request."""
        array = npy_array(read_bytes(path), path)
        if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
            raise fault(path, f"got {array.dtype} {array.shape}; accepted: whole numbers [tokens, layers]")
        layers = hints.moe_layers if hints.moe_layers is not None else tuple(range(array.shape[1]))
        if len(layers) != array.shape[1]:
            raise fault(path, f"{array.shape[1]} layers; accepted: {len(layers)}", "layers")
        request = Request(array.astype(np.int64)[..., None])
        return build_trace([request], layers, hints, path=path, said="trace in ExFlow's form")

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write ids of a top-1 trace."""
        trace = full_ids(trace, "ExFlow")
        if trace.top_k != 1:
            raise one_problem("top_k", f"got {trace.top_k}; accepted: 1 for ExFlow")
        return [write_bytes(path, npy_bytes(trace.expert_ids[..., 0].astype(np.int64)))]
