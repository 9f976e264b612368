"""Megatron-LM's routing trace: one JSON object a step, block and layer.

Layout (``--moe-routing-trace-path``): ``router_trace_rank<r>.jsonl`` with ``step``, ``stage``,
``block`` (``decoder`` or ``mtp``), ``layer``, ``rank``, ``num_tokens``, ``topk``, ``top_indices``.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import write_text
from moesim.traces.arrays import fault
from moesim.traces.formats import formats
from moesim.traces.interchange import EMPTY, Hints, Request, build_trace, int_array, json_lines
from moesim.traces.replay import routing_only
from moesim.traces.routing import ExpertCounts, RoutingTrace


@formats.register("megatron")
@dataclass(frozen=True)
class Megatron:
    """``router_trace_rank<r>.jsonl``, or a folder of them; a step of a rank is read as one request."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """Choices of the decoder; multi-token-prediction blocks are left out."""
        files = sorted(path.glob("router_trace_rank*.jsonl")) if path.is_dir() else [path]
        requests: list[Request] = []
        layers: list[int] | None = None
        for file in files:
            found = _steps(file)
            for step, by_layer in sorted(found.items()):
                if layers not in (None, sorted(by_layer)):
                    raise fault(file, f"step {step} has other layers than the steps before it")
                layers = sorted(by_layer)
                parts = [by_layer[layer] for layer in layers]
                if len({p.shape for p in parts}) > 1:
                    raise fault(file, f"layers of different shapes in step {step}", "top_indices")
                ids = np.stack(parts, axis=1)
                requests.append(Request(ids, step=np.full(len(ids), step)))
        if not requests or layers is None:
            raise fault(path, "no decoder line in it")
        return build_trace(requests, layers, hints, path=path, said="recorded by Megatron-LM's router trace")

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write one step a request as rank 0: ids only."""
        trace = routing_only(trace)
        bounds = [*trace.request_starts().tolist(), trace.num_tokens]
        lines = []
        for step, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
            part = trace.expert_ids[start:stop].astype(np.int64)
            part = np.where(part == trace.empty_slot, EMPTY, part)
            for index, layer in enumerate(trace.info.layer_indices):
                line: dict[str, Any] = {
                    "step": step,
                    "stage": "pre_dispatch",
                    "block": "decoder",
                    "layer": layer,
                    "rank": 0,
                    "num_tokens": stop - start,
                    "topk": trace.top_k,
                    "top_indices": part[:, index].tolist(),
                }
                lines.append(json.dumps(line))
        return [write_text(path, "\n".join(lines) + "\n")]


def _steps(path: Path) -> dict[int, dict[int, NDArray[np.int64]]]:
    found: dict[int, dict[int, NDArray[np.int64]]] = {}
    for number, line in json_lines(path):
        if line.get("block", "decoder") != "decoder":
            continue
        step, layer = line.get("step"), line.get("layer")
        limit = np.iinfo(np.int32).max
        if (
            type(step) is not int
            or type(layer) is not int
            or not 0 <= step <= limit
            or not 0 <= layer <= limit
        ):
            raise fault(path, f"line {number}: accepted: whole numbers >= 0", "step, layer")
        ids = int_array(line.get("top_indices"), path, f"top_indices of line {number}", rank=2)
        if layer in found.setdefault(step, {}):
            raise fault(path, f"line {number}: step {step} has layer {layer} twice")
        found[step][layer] = ids
    return found
