"""SGLang's routed experts of single requests: base64 of raw int32 in the answer.

Layout (sglang 0.5.23): ``meta_info.routed_experts`` reshapes to ``[tokens - 1 - start, hidden
layers, top_k]``; ids are logical, dense layers read 0.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.files import write_text
from moesim.traces.arrays import fault
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints, Request, build_trace, json_lines, moe_layers_of
from moesim.traces.replay import request_arrays
from moesim.traces.routing import ExpertCounts, RoutingTrace


@formats.register("sglang_request")
@dataclass(frozen=True)
class SglangRequest:
    """Answers of SGLang, one JSON object a line, with ``meta_info.routed_experts``."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """One request an answer; needs the model's number of layers and top-k."""
        layers, slots = hints.need("num_hidden_layers", path), hints.need("top_k", path)
        requests = []
        for number, answer in json_lines(path):
            about: Any = answer.get("meta_info", answer)
            encoded = about.get("routed_experts") if isinstance(about, Mapping) else None
            if encoded is None:
                continue
            values = _decoded(encoded, number, path)
            if values.size % (layers * slots):
                message = f"line {number}: {values.size} ids; accepted: a multiple of {layers} x {slots}"
                raise fault(path, message, "routed_experts")
            prompt = about.get("prompt_tokens")
            prompt = prompt if isinstance(prompt, int) and prompt >= 0 else None
            requests.append(Request(values.reshape(-1, layers, slots), prompt))
        if not requests:
            raise fault(path, "no answer has it", "meta_info.routed_experts")
        found, indices = moe_layers_of(requests, hints, path)
        said = "recorded by SGLang with return_routed_experts"
        return build_trace(found, indices, hints, path=path, said=said)

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write one answer a request: ids and the number of prompt tokens."""
        lines = []
        for array, prompt in request_arrays(trace, np.dtype("<i4")):
            encoded = base64.b64encode(array.tobytes()).decode()
            lines.append(json.dumps({"meta_info": {"prompt_tokens": prompt, "routed_experts": encoded}}))
        return [write_text(path, "\n".join(lines) + "\n")]


def _decoded(encoded: Any, number: int, path: Path) -> Any:
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise fault(path, f"line {number}: is not base64", "routed_experts") from None
    if len(raw) % 4:
        raise fault(path, f"line {number}: {len(raw)} bytes are not int32", "routed_experts")
    return np.frombuffer(raw, "<i4").astype(np.int64)
