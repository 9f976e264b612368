"""vLLM's routed experts: ``.npy`` files, or base64 of them in OpenAI answers.

Layout (vllm 0.33.0): ``CompletionOutput.routed_experts`` is ``[tokens - 1, hidden layers, top_k]``,
uint8 up to 256 experts, else uint16, logical ids; the OpenAI field ``routed_experts`` of a choice is
base64 of the ``.npy`` bytes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import write_bytes
from moesim.traces.arrays import fault, npy_array, npy_bytes, read_bytes
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints, Request, build_trace, json_lines, moe_layers_of
from moesim.traces.replay import request_arrays
from moesim.traces.routing import ExpertCounts, RoutingTrace


@formats.register("vllm")
@dataclass(frozen=True)
class Vllm:
    """``.npy`` of one request, a folder of them, or OpenAI answers (``.json``, ``.jsonl``)."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """One request a file or choice; phases of ``.npy`` files are unknown and read as prefill."""
        requests = []
        for array, prompt in _found(path):
            if array.ndim != 3 or array.dtype.kind not in "iu" or not array.size:
                message = f"got {array.dtype} {array.shape}; accepted: tokens, layers, top_k"
                raise fault(path, message, "routed_experts")
            requests.append(Request(array.astype(np.int64), prompt))
        if not requests:
            raise fault(path, "no routed experts in it", "routed_experts")
        found, indices = moe_layers_of(requests, hints, path)
        return build_trace(
            found, indices, hints, path=path, said="recorded by vLLM with return_routed_experts"
        )

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write ``request_000000.npy`` and so on into a folder: ids only, zeros for dense layers."""
        wide = np.dtype(np.uint8 if trace.info.num_experts <= 256 else np.uint16)
        return [
            write_bytes(path / f"request_{number:06d}.npy", npy_bytes(array))
            for number, (array, _) in enumerate(request_arrays(trace, wide))
        ]


def _found(path: Path) -> Iterator[tuple[NDArray[Any], int | None]]:
    if path.is_dir():
        for file in sorted(path.glob("*.npy")):
            yield npy_array(read_bytes(file), file), None
    elif path.suffix == ".npy":
        yield npy_array(read_bytes(path), path), None
    else:
        for number, answer in json_lines(path):
            usage = answer.get("usage")
            prompt = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
            choices = answer.get("choices", [answer])
            if not isinstance(choices, list):
                raise fault(path, f"line {number}: is not a list", "choices")
            for choice in choices:
                encoded = choice.get("routed_experts") if isinstance(choice, Mapping) else None
                if encoded is not None:
                    known = prompt if isinstance(prompt, int) and prompt >= 0 else None
                    yield _decoded(encoded, number, path), known


def _decoded(encoded: Any, number: int, path: Path) -> NDArray[Any]:
    try:
        raw = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError, TypeError):
        raise fault(path, f"line {number}: is not base64", "routed_experts") from None
    return npy_array(raw, path, f"routed_experts of line {number}")
