"""Router replay: one tensor of ids that a training framework feeds back to its routers.

Megatron-LM (``moe_enable_routing_replay``) stacks ``int32 [tokens, MoE layers, k]``; verl (R2, R3)
carries ``routed_experts [batch, padded length, layers, k]`` padded with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.arrays import fault, read_arrays, write_array
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints, Request, build_trace, moe_layers_of
from moesim.traces.replay import full_ids, request_arrays
from moesim.traces.routing import ExpertCounts, RoutingTrace

NAME = "routed_experts"


@formats.register("megatron_replay")
@dataclass(frozen=True)
class MegatronReplay:
    """``.npy`` or ``.pt`` tensor ``[tokens, MoE layers, k]``: ids of one request, nothing else."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """All rows as one request."""
        array = _only(path, 3)
        found, indices = moe_layers_of([Request(array)], hints, path)
        return build_trace(found, indices, hints, path=path, said="router replay tensor of Megatron-LM")

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write the rows of all requests after each other, traced layers only."""
        return [write_array(path, "", full_ids(trace, "a replay tensor").expert_ids.astype(np.int32))]


@formats.register("verl")
@dataclass(frozen=True)
class Verl:
    """``.npy`` or ``.pt`` batch ``routed_experts [batch, length, layers, k]``, zero padded.

    Padding is found by an ``attention_mask`` beside it, or by rows in which all slots of all layers
    are zero, which no router with two or more choices can give.
    """

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """One request a batch row."""
        array = _only(path, 4)
        mask: NDArray[Any] | None = read_arrays(path).get("attention_mask")
        if mask is None:
            if array.shape[3] < 2:
                raise fault(path, "padding of a single choice cannot be told", "attention_mask")
            mask = np.asarray(array.any(axis=(2, 3)))
        elif mask.shape != array.shape[:2]:
            raise fault(path, f"got {mask.shape}; accepted: {array.shape[:2]}", "attention_mask")
        requests = [Request(rows[keep != 0]) for rows, keep in zip(array, mask, strict=True)]
        requests = [r for r in requests if len(r.ids)]
        if not requests:
            raise fault(path, "nothing but padding", NAME)
        found, indices = moe_layers_of(requests, hints, path)
        return build_trace(found, indices, hints, path=path, said="router replay batch of verl")

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write one batch row a request, padded with zeros behind it and in dense layers."""
        arrays = [array for array, _ in request_arrays(trace, np.dtype(np.int32))]
        length = max(len(a) for a in arrays)
        batch = np.zeros((len(arrays), length, *arrays[0].shape[1:]), np.int32)
        for row, array in zip(batch, arrays, strict=True):
            row[: len(array)] = array
        return [write_array(path, NAME, batch)]


def _only(path: Path, rank: int) -> NDArray[np.int64]:
    arrays = read_arrays(path)
    array: NDArray[Any] | None = arrays.get(NAME, arrays.get(""))
    if array is None or array.ndim != rank or array.dtype.kind not in "iu" or not array.size:
        got = "nothing" if array is None else f"{array.dtype} {array.shape}"
        raise fault(path, f"got {got}; accepted: whole numbers in {rank} dimensions", NAME)
    return array.astype(np.int64)
