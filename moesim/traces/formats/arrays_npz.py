"""Plain arrays in one ``.npz``: how published recordings are often repacked."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import write_bytes
from moesim.traces.arrays import fault, read_arrays
from moesim.traces.formats import formats
from moesim.traces.interchange import EMPTY, Hints, Request, build_trace
from moesim.traces.replay import routing_only
from moesim.traces.routing import ExpertCounts, RoutingTrace


@formats.register("npz")
@dataclass(frozen=True)
class Npz:
    """``.npz`` with ``expert_ids [tokens, layers, k]``, and optional ``seq_lens``, ``layer_ids``,
    ``prompt_lens``, ``gate_weights``.
    """  # noqa: D205

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """One request an entry of ``seq_lens``; without it one in all."""
        arrays = read_arrays(path)
        ids = arrays.get("expert_ids")
        if ids is None or ids.ndim != 3 or ids.dtype.kind not in "iu" or not ids.size:
            raise fault(path, "accepted: whole numbers [tokens, layers, k]", "expert_ids")
        lengths = arrays.get("seq_lens", np.array([len(ids)]))
        layers = arrays.get("layer_ids", np.arange(ids.shape[1]))
        for name, array in (("seq_lens", lengths), ("layer_ids", layers)):
            if array.ndim != 1 or array.dtype.kind not in "iu" or array.min(initial=0) < 0:
                raise fault(path, "accepted: whole numbers >= 0 in one dimension", name)
        if len(layers) != ids.shape[1] or int(lengths.astype(object).sum()) != len(ids):
            raise fault(path, "do not add up to the shape of expert_ids", "seq_lens, layer_ids")
        weights = arrays.get("gate_weights")
        if weights is not None and weights.shape != ids.shape:
            raise fault(path, f"got {weights.shape}; accepted: {ids.shape}", "gate_weights")
        signed = ids.astype(np.int64)
        ends = np.cumsum(lengths)
        prompts = arrays.get("prompt_tokens")
        if prompts is not None and prompts.shape != lengths.shape:
            raise fault(path, f"got {prompts.shape}; accepted: {lengths.shape}", "prompt_tokens")
        requests = [
            Request(
                signed[end - n : end],
                None if prompts is None else int(prompts[index]),
                weights=None if weights is None else weights[end - n : end],
            )
            for index, (n, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True))
        ]
        return build_trace(requests, layers.tolist(), hints, path=path, said="arrays in an .npz file")

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write ids, request lengths, prompt lengths, layers and weights."""
        trace = routing_only(trace)
        starts = trace.request_starts()
        arrays: dict[str, NDArray[Any]] = {
            "expert_ids": np.where(
                trace.expert_ids == trace.empty_slot, EMPTY, trace.expert_ids.astype(np.int32)
            ),
            "seq_lens": np.diff(np.append(starts, trace.num_tokens)),
            "prompt_tokens": np.add.reduceat((trace.phase == 0).astype(np.int64), starts),
            "layer_ids": np.array(trace.info.layer_indices),
        }
        if trace.gate_weights is not None:
            arrays["gate_weights"] = trace.gate_weights
        stream = io.BytesIO()
        np.savez_compressed(stream, allow_pickle=False, **arrays)
        return [write_bytes(path, stream.getvalue())]
