"""SGLang's expert distribution recorder: ``stat``, ``per_pass`` and ``per_token`` dumps.

Layout (sglang 0.5.23, ``srt/eplb/expert_distribution.py``): dictionaries written by ``torch.save``.
``stat`` holds ``logical_count [buffer, layers, experts]``; the other two hold ``records`` and
``last_physical_to_logical_map [layers, physical]``, and their expert ids are physical.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.traces.arrays import fault
from moesim.traces.formats import formats
from moesim.traces.interchange import (
    EMPTY,
    Hints,
    Request,
    build_counts,
    build_trace,
    moe_layers_of,
    one_problem,
)
from moesim.traces.routing import ExpertCounts, RoutingTrace
from moesim.traces.torch_file import read_torch, write_torch

_SAID = "recorded by SGLang's expert distribution recorder"


@formats.register("sglang")
@dataclass(frozen=True)
class Sglang:
    """Dump of SGLang's recorder (``.pt``), or a folder with one dump a rank.

    Decode rows of ``per_token`` carry no request: a row continues the first open request that was
    last seen one position before it. Ranks that recorded the same tokens are read once.
    """

    def read(self, path: Path, hints: Hints) -> RoutingTrace | ExpertCounts:
        """Counts of a ``stat`` or ``per_pass`` dump, routing of a ``per_token`` dump."""
        files = sorted(path.glob("*.pt")) if path.is_dir() else [path]
        if not files:
            raise fault(path, "no .pt file in it")
        dumps = []
        for file in files:
            dump = read_torch(file)
            if not isinstance(dump, dict):
                raise fault(file, "accepted: a dictionary with logical_count, or with records")
            dumps.append((file, dump))
        if "logical_count" in dumps[0][1]:
            return _stat(*dumps[0], hints)
        return _records(dumps, path, hints)

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write a ``stat`` dump, which SGLang takes as ``--init-expert-location``."""
        counts = trace.counts()[None] if isinstance(trace, RoutingTrace) else trace.counts
        if int(counts.max()) > np.iinfo(np.int32).max:
            raise one_problem("counts", "do not fit SGLang's int32")
        indices = trace.info.layer_indices
        whole = np.zeros((len(counts), indices[-1] + 1, trace.info.num_experts), np.int32)
        whole[:, list(indices)] = counts
        dump = {"rank": 0, "logical_count": whole, "average_utilization_rate_over_window": None}
        return [write_torch(path, dump)]


def _array(found: Mapping[Any, Any], name: str, rank: int, path: Path) -> NDArray[np.int64]:
    value = found.get(name)
    if not isinstance(value, np.ndarray) or value.ndim != rank or value.dtype.kind not in "iu":
        raise fault(path, f"accepted: whole numbers in {rank} dimensions", name)
    return value.astype(np.int64)


def _stat(path: Path, dump: Mapping[Any, Any], hints: Hints) -> ExpertCounts:
    counts = _array(dump, "logical_count", 3, path)
    return _counted(counts, path, hints)


def _counted(counts: NDArray[np.int64], path: Path, hints: Hints) -> ExpertCounts:
    """Counts of MoE layers: layers in which nothing was ever counted are dense."""
    used = np.flatnonzero(counts.any(axis=(0, 2)))
    if not used.size:
        raise fault(path, "nothing was counted", "logical_count")
    return build_counts(counts[:, used], used.tolist(), hints, path=path, said=_SAID)


def _records(
    dumps: list[tuple[Path, dict[Any, Any]]], path: Path, hints: Hints
) -> RoutingTrace | ExpertCounts:
    per_pass: dict[int, NDArray[np.int64]] = {}
    requests = _Requests()
    for file, dump in dumps:
        mapping = _array(dump, "last_physical_to_logical_map", 2, file)
        records = dump.get("records")
        if not isinstance(records, list) or not all(isinstance(r, dict) for r in records):
            raise fault(file, "accepted: a list of dictionaries", "records")
        if not mapping.size or mapping.min() < 0:
            raise fault(file, "accepted: expert numbers >= 0", "last_physical_to_logical_map")
        requests.new_rank()
        for record in records:
            step = record.get("forward_pass_id", 0)
            if type(step) is not int or not 0 <= step <= np.iinfo(np.int32).max:
                raise fault(file, f"got {step!r}"[:80], "forward_pass_id")
            if "topk_ids_of_layer" in record:
                ids = _array(record, "topk_ids_of_layer", 3, file)
                requests.add(record, _logical(ids, mapping, file), step, file)
            else:
                counts = _array(record, "global_physical_count", 2, file)
                # every rank records the global count of a pass
                per_pass[step] = _logical_counts(counts, mapping, file)
    if not per_pass:
        if not requests.done:
            raise fault(path, "no record in it", "records")
        found, layers = moe_layers_of(requests.done, hints, path)
        return build_trace(found, layers, hints, path=path, said=f"{_SAID}, per token")
    if len({c.shape for c in per_pass.values()}) > 1:
        raise fault(path, "passes of different shapes", "global_physical_count")
    return _counted(np.stack([per_pass[step] for step in sorted(per_pass)]), path, hints)


def _logical(ids: NDArray[np.int64], mapping: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
    """Physical ids ``(layers, tokens, slots)`` to logical ``(tokens, layers, slots)``."""
    if len(ids) != len(mapping) or ids.size and (ids.max() >= mapping.shape[1] or ids.min() < EMPTY):
        accepted = f"{len(mapping)} layers of ids below {mapping.shape[1]}"
        raise fault(path, f"accepted: {accepted}", "topk_ids_of_layer")
    layer = np.arange(len(ids))[:, None, None]
    logical = np.where(ids == EMPTY, EMPTY, mapping[layer, np.maximum(ids, 0)])
    dense = (ids == EMPTY).all(axis=(1, 2))
    logical[dense] = 0
    return logical.swapaxes(0, 1)


def _logical_counts(counts: NDArray[np.int64], mapping: NDArray[np.int64], path: Path) -> NDArray[np.int64]:
    if counts.shape != mapping.shape or mapping.max() >= mapping.shape[1]:
        raise fault(path, f"got {counts.shape}; accepted: {mapping.shape}", "global_physical_count")
    logical = np.zeros((len(counts), int(mapping.max()) + 1), np.int64)
    np.add.at(logical, (np.arange(len(counts))[:, None], mapping), counts)
    return logical


@dataclass
class _Requests:
    """Requests put together from passes."""

    done: list[Request] = field(default_factory=list)
    seen: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    open: list[int] = field(default_factory=list)

    def new_rank(self) -> None:
        """Requests of one rank never continue on another."""
        self.open = []

    def add(self, record: Mapping[Any, Any], ids: NDArray[np.int64], step: int, path: Path) -> None:
        """Rows of one forward pass, ``(tokens, layers, slots)``."""
        tokens = len(ids)
        position = np.asarray(record.get("positions", np.arange(tokens)))
        token = np.asarray(record.get("input_ids", np.zeros(0)))
        if position.ndim != 1 or position.dtype.kind not in "iu" or len(position) < tokens:
            raise fault(path, f"accepted: {tokens} whole numbers", "positions")
        position = position[:tokens].astype(np.int64)
        # padding rows chose nothing
        real = (ids != EMPTY).any(axis=(1, 2)) & (ids != 0).any(axis=(1, 2))
        mark = (token.tobytes(), position.tobytes())
        if token.size and mark in self.seen.setdefault(step, []):
            return
        if token.size:
            self.seen[step].append(mark)
        width = int((ids != EMPTY).any(axis=(0, 1)).sum()) or 1
        ids = ids[..., :width]
        lengths = record.get("extend_seq_lens")
        if lengths is not None and len(np.atleast_1d(np.asarray(lengths))):
            self._prefill(np.atleast_1d(np.asarray(lengths)), ids, position, step, path)
            return
        for row in np.flatnonzero(real):
            self._continue(ids[row : row + 1], position[row : row + 1], step)

    def _prefill(
        self, lengths: NDArray[Any], ids: NDArray[Any], position: NDArray[Any], step: int, path: Path
    ) -> None:
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or lengths.min() < 0:
            raise fault(path, "accepted: whole numbers >= 0", "extend_seq_lens")
        if int(lengths.sum()) > len(ids):
            raise fault(path, f"sum to {int(lengths.sum())}; {len(ids)} tokens", "extend_seq_lens")
        start = 0
        for length in lengths.tolist():
            rows = slice(start, start + length)
            start += length
            if length:
                steps = np.full(length, step)
                self.open.append(len(self.done))
                self.done.append(Request(ids[rows], length, position=position[rows], step=steps))

    def _continue(self, ids: NDArray[Any], position: NDArray[Any], step: int) -> None:
        steps = np.array([step])
        for index in self.open:
            request = self.done[index]
            if request.position is None or request.step is None:
                continue
            fits = request.position[-1] == position[0] - 1 and request.step[-1] < step
            if fits and request.ids.shape[1:] == ids.shape[1:]:
                self.done[index] = Request(
                    np.concatenate([request.ids, ids]),
                    request.prompt_tokens,
                    position=np.concatenate([request.position, position]),
                    step=np.concatenate([request.step, steps]),
                )
                return
        self.open.append(len(self.done))
        self.done.append(Request(ids, 0, position=position, step=steps))
