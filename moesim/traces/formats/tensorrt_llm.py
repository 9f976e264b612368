"""TensorRT-LLM's expert statistics: counts, or raw choices, of iterations and layers.

Layout (``_torch/expert_statistic.py``): ``meta_info.json`` with ``num_experts`` and
``num_experts_per_token``; ``rank<r>.safetensors`` with ``"<iteration>_<layer>"`` to int64 counts, to
be summed over ranks; newer tools add ``rank<r>_raw.safetensors`` with ids ``[tokens, k]``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import write_json
from moesim.traces.arrays import fault
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints, Request, build_counts, build_trace, json_value
from moesim.traces.routing import ExpertCounts, RoutingTrace
from moesim.traces.safetensors import read_tensors, write_tensors

MAX_TENSORS = 1 << 20
"""Iterations times layers accepted in one file."""
_SAID = "recorded by TensorRT-LLM's expert statistic"


@formats.register("tensorrt_llm")
@dataclass(frozen=True)
class TensorrtLlm:
    """Folder with ``meta_info.json`` and ``rank*.safetensors``."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace | ExpertCounts:
        """Routing where raw files are, one request an iteration and rank; otherwise counts."""
        num_experts = _num_experts(path / "meta_info.json")
        if hints.num_experts not in (None, num_experts):
            raise fault(path, f"got {num_experts}; accepted: {hints.num_experts}", "num_experts")
        raw = sorted(path.glob("rank*_raw.safetensors"))
        if raw:
            return _routing(raw, num_experts, path, hints)
        summed = sorted(set(path.glob("rank*.safetensors")) - set(raw))
        if not summed:
            raise fault(path, "no rank*.safetensors in it")
        total: dict[tuple[int, int], NDArray[np.int64]] = {}
        for file in summed:
            for key, counts in _by_key(file).items():
                if counts.shape != (num_experts,):
                    raise fault(file, f"got {counts.shape}; accepted: ({num_experts},)", str(key))
                total[key] = total.get(key, 0) + counts.astype(np.int64)
        steps, layers = _grid(total, path)
        counts = np.stack([np.stack([total[s, layer] for layer in layers]) for s in steps])
        return build_counts(counts, layers, hints, path=path, said=_SAID)

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write raw ids of rank 0 with a request as an iteration, or counts."""
        layers = trace.info.layer_indices
        tensors: dict[str, NDArray[Any]] = {}
        meta: dict[str, Any] = {"num_experts": trace.info.num_experts}
        if isinstance(trace, RoutingTrace):
            meta["num_experts_per_token"] = trace.top_k
            bounds = [*trace.request_starts().tolist(), trace.num_tokens]
            for step, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
                part = trace.expert_ids[start:stop].astype(np.int64)
                part = np.where(part == trace.empty_slot, -1, part)
                tensors |= {f"{step}_{layer}": part[:, i] for i, layer in enumerate(layers)}
            name = "rank0_raw.safetensors"
        else:
            meta["num_experts_per_token"] = None
            for step, counts in enumerate(trace.counts):
                tensors |= {f"{step}_{layer}": counts[i] for i, layer in enumerate(layers)}
            name = "rank0.safetensors"
        return [write_json(path / "meta_info.json", meta), write_tensors(path / name, tensors, {})]


def _num_experts(path: Path) -> int:
    meta = json_value(path)
    value = meta.get("num_experts") if isinstance(meta, dict) else None
    if type(value) is not int or value < 1:
        raise fault(path, f"got {value!r}"[:80], "num_experts")
    return value


def _by_key(path: Path) -> dict[tuple[int, int], NDArray[Any]]:
    found = {}
    for name, array in read_tensors(path, max_tensors=MAX_TENSORS)[0].items():
        match = re.fullmatch(r"(\d{1,9})_(\d{1,9})", name)
        if match is None or array.dtype.kind not in "iu":
            raise fault(path, "accepted: '<iteration>_<layer>' of whole numbers", name)
        found[int(match[1]), int(match[2])] = array
    return found


def _grid(found: dict[tuple[int, int], Any], path: Path) -> tuple[list[int], list[int]]:
    steps = sorted({step for step, _ in found})
    layers = sorted({layer for _, layer in found})
    if len(found) != len(steps) * len(layers) or not found:
        raise fault(path, f"{len(found)} tensors; accepted: every layer of every iteration")
    return steps, layers


def _routing(files: list[Path], num_experts: int, path: Path, hints: Hints) -> RoutingTrace:
    requests, indices = [], None
    for file in files:
        found = _by_key(file)
        steps, layers = _grid(found, file)
        if indices not in (None, layers):
            raise fault(file, "has other layers than the files before it")
        indices = layers
        for step in steps:
            parts = [found[step, layer] for layer in layers]
            if len({p.shape for p in parts}) > 1 or parts[0].ndim != 2:
                raise fault(file, "layers of different shapes; accepted: [tokens, k]", str(step))
            ids = np.stack(parts, axis=1).astype(np.int64)
            requests.append(Request(ids, step=np.full(len(ids), step)))
    hints = Hints(hints.model, num_experts, hints.top_k, None, None, hints.source, hints.date)
    return build_trace(requests, indices or [], hints, path=path, said=f"{_SAID}, raw")
