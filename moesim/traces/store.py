"""Trace files: safetensors with the description as JSON under the key ``moesim_trace``.

Reading maps the file and trusts nothing in it; ``verify`` streams through the values once so that
no later indexing can go out of range.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.evidence import GRADES
from moesim.traces.description import PHASES, TraceInfo, info_problems
from moesim.traces.routing import CHUNK_TOKENS, ExpertCounts, RoutingTrace
from moesim.traces.safetensors import Streamed, read_tensors, write_streamed, write_tensors

SCHEMA_VERSION = 1
METADATA_KEY = "moesim_trace"
_ROUTING = "routing"
_COUNTS = "expert_counts"
_REQUIRED = {
    "expert_ids": (3, ("uint8", "uint16")),
    "request_index": (1, ("int32",)),
    "position": (1, ("int32",)),
    "step_index": (1, ("int32",)),
    "phase": (1, ("uint8",)),
    "domain_index": (1, ("uint8",)),
}
_OPTIONAL = {"gate_weights": (3, ("float16",))}
_FIELDS: dict[str, tuple[type, ...]] = {
    "schema_version": (int,),
    "kind": (str,),
    "model": (str,),
    "num_experts": (int,),
    "layer_indices": (list,),
    "source": (str,),
    "domains": (list,),
    "date": (str,),
    "evidence": (str,),
}


def write_trace(path: Path, trace: RoutingTrace) -> Path:
    """Write a routing trace atomically; same trace, same bytes."""
    tensors: dict[str, NDArray[Any]] = {name: getattr(trace, name) for name in _REQUIRED}
    if trace.gate_weights is not None:
        tensors["gate_weights"] = trace.gate_weights
    return write_tensors(path, tensors, {METADATA_KEY: _document(trace.info, _ROUTING)})


def write_trace_streamed(path: Path, info: TraceInfo, tensors: Mapping[str, Streamed]) -> Path:
    """:func:`write_trace` of tensors that arrive in pieces, by the names of the trace's arrays."""
    return write_streamed(path, tensors, {METADATA_KEY: _document(info, _ROUTING)})


def read_trace(path: Path, *, verify: bool = True) -> RoutingTrace:
    """Routing trace whose arrays are memory-mapped views of the file.

    Parameters
    ----------
    path : Path
        File written by :func:`write_trace`.
    verify : bool, default True
        Also look at every value, in chunks: ids in range and distinct within a token, rows in
        order. Without it only sizes, types and the description are checked, and nothing but the
        header is read.

    Raises
    ------
    InputError
        What is wrong, where, and what is accepted.
    """
    tensors, info = _open(path, _ROUTING, _REQUIRED, _OPTIONAL)
    try:
        trace = RoutingTrace(info=info, **tensors)
    except InputError as error:
        raise InputError(error.problems, source=str(path)) from None
    if verify:
        verify_trace(trace, source=str(path))
    return trace


def write_counts(path: Path, counts: ExpertCounts) -> Path:
    """Write a counts-only trace atomically; same counts, same bytes."""
    return write_tensors(path, {"counts": counts.counts}, {METADATA_KEY: _document(counts.info, _COUNTS)})


def read_counts(path: Path) -> ExpertCounts:
    """Counts-only trace, memory-mapped.

    Raises
    ------
    InputError
        What is wrong, where, and what is accepted.
    """
    tensors, info = _open(path, _COUNTS, {"counts": (3, ("int64",))}, {})
    try:
        counts = ExpertCounts(info=info, counts=tensors["counts"])
    except InputError as error:
        raise InputError(error.problems, source=str(path)) from None
    for step in range(len(counts.counts)):
        layers = counts.counts[step]
        if layers.min() < 0:
            layer, expert = (int(v) for v in np.argwhere(layers < 0)[0])
            message = f"got {int(layers[layer, expert])} at step {step}, layer {layer}, expert {expert}"
            raise InputError([Problem("counts", f"{message}; accepted: whole numbers >= 0", str(path))])
    return counts


def verify_trace(trace: RoutingTrace, *, source: str = "routing trace") -> None:
    """Look at every value of a trace, :data:`CHUNK_TOKENS` tokens at a time.

    Raises
    ------
    InputError
        First fault of each kind: an id that is neither an expert nor the empty mark, an expert
        chosen twice by one token, a phase or domain without name, rows out of order.
    """
    faults: dict[str, Problem] = {}
    for start in range(0, trace.num_tokens, CHUNK_TOKENS):
        # one row of overlap, so that order across chunks is seen
        part = trace.take(slice(max(0, start - 1), start + CHUNK_TOKENS))
        for check in (_id_fault, _repeat_fault, _label_fault, _order_fault, _weight_fault):
            if check.__name__ not in faults:
                problem = check(part, max(0, start - 1))
                if problem is not None:
                    faults[check.__name__] = problem
    if faults:
        raise InputError(list(faults.values()), source=source)


def _id_fault(part: RoutingTrace, first_row: int) -> Problem | None:
    wrong = (part.expert_ids >= part.num_experts) & (part.expert_ids != part.empty_slot)
    if not wrong.any():
        return None
    token, layer, slot = (int(v) for v in np.argwhere(wrong)[0])
    got = int(part.expert_ids[token, layer, slot])
    accepted = f"0 to {part.num_experts - 1}, or {part.empty_slot} for an empty slot"
    message = f"got {got} at token {first_row + token}, layer {layer}, slot {slot}; accepted: {accepted}"
    return Problem("expert_ids", message)


def _repeat_fault(part: RoutingTrace, first_row: int) -> Problem | None:
    ordered = np.sort(part.expert_ids, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] < part.num_experts)
    if not twice.any():
        return None
    token, layer, slot = (int(v) for v in np.argwhere(twice)[0])
    where = f"token {first_row + token}, layer {layer}"
    message = f"expert {int(ordered[token, layer, slot])} twice at {where}; accepted: distinct experts"
    return Problem("expert_ids", message)


def _label_fault(part: RoutingTrace, first_row: int) -> Problem | None:
    for name, known in (("phase", PHASES), ("domain_index", part.info.domains)):
        values = getattr(part, name)
        if int(values.max()) >= len(known):
            token = int(np.flatnonzero(values >= len(known))[0])
            accepted = ", ".join(f"{i} ({word})" for i, word in enumerate(known))
            return Problem(
                name, f"got {int(values[token])} at token {first_row + token}; accepted: {accepted}"
            )
    return None


def _order_fault(part: RoutingTrace, first_row: int) -> Problem | None:
    for name in ("request_index", "position", "step_index"):
        values = getattr(part, name)
        if int(values.min()) < 0:
            token = int(np.flatnonzero(values < 0)[0])
            return Problem(name, f"got {int(values[token])} at token {first_row + token}; accepted: >= 0")
    request = np.diff(part.request_index.astype(np.int64))
    same = request == 0
    rules = (
        ("request_index", request < 0, "non-decreasing"),
        ("position", same & (np.diff(part.position.astype(np.int64)) <= 0), "increasing within a request"),
        (
            "phase",
            same & (np.diff(part.phase.astype(np.int64)) < 0),
            "prefill before decode within a request",
        ),
    )
    for name, wrong, accepted in rules:
        if wrong.any():
            token = 1 + int(np.flatnonzero(wrong)[0])
            before, got = (int(getattr(part, name)[token + i]) for i in (-1, 0))
            where = f"at token {first_row + token}"
            return Problem(name, f"got {got} after {before} {where}; accepted: {accepted}")
    return None


def _weight_fault(part: RoutingTrace, first_row: int) -> Problem | None:
    if part.gate_weights is None or np.isfinite(part.gate_weights).all():
        return None
    token, layer, slot = (int(v) for v in np.argwhere(~np.isfinite(part.gate_weights))[0])
    where = f"token {first_row + token}, layer {layer}, slot {slot}"
    return Problem("gate_weights", f"not a finite number at {where}; accepted: finite numbers")


def _document(info: TraceInfo, kind: str) -> str:
    fields = {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "model": info.model,
        "num_experts": info.num_experts,
        "layer_indices": list(info.layer_indices),
        "source": info.source,
        "domains": list(info.domains),
        "date": info.date,
        "evidence": info.evidence,
    }
    return json.dumps(fields, ensure_ascii=False, allow_nan=False)


def _open(
    path: Path,
    kind: str,
    required: Mapping[str, tuple[int, tuple[str, ...]]],
    optional: Mapping[str, tuple[int, tuple[str, ...]]],
) -> tuple[dict[str, Any], TraceInfo]:
    """Tensors of the right names, ranks and types, and the description."""
    tensors, text = read_tensors(path)
    info = _info(text.get(METADATA_KEY), kind, path)
    known = {**required, **optional}
    problems = [
        Problem(name, f"missing tensor; accepted: {'/'.join(types)} with {rank} dimensions")
        for name, (rank, types) in required.items()
        if name not in tensors
    ]
    for name, array in tensors.items():
        if name not in known:
            problems.append(Problem(name[:80], f"unknown tensor; accepted: {', '.join(known)}"))
            continue
        rank, types = known[name]
        if array.ndim != rank or array.dtype.name not in types:
            accepted = f"{'/'.join(types)} with {rank} dimensions"
            problems.append(Problem(name, f"got {array.dtype} {array.shape}; accepted: {accepted}"))
    if problems:
        raise InputError(problems, source=str(path))
    return tensors, info


def _info(encoded: str | None, kind: str, path: Path) -> TraceInfo:
    """Description, every fault of it at once."""
    if encoded is None:
        message = f"no {METADATA_KEY!r} in __metadata__; accepted: a trace written by moesim"
        raise InputError([Problem("", message, str(path))])
    try:
        fields = json.loads(encoded)
    except (ValueError, RecursionError):
        raise InputError([Problem(METADATA_KEY, "is not JSON", str(path))]) from None
    if not isinstance(fields, dict):
        raise InputError([Problem(METADATA_KEY, "is not a JSON object", str(path))])
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION:
        raise InputError.at("schema_version", version, str(SCHEMA_VERSION), where=str(path))
    problems = _field_problems(fields, kind)
    if problems:
        raise InputError(problems, source=str(path))
    info = TraceInfo(
        model=fields["model"],
        num_experts=fields["num_experts"],
        layer_indices=tuple(fields["layer_indices"]),
        source=fields["source"],
        domains=tuple(fields["domains"]),
        date=fields["date"],
        evidence=fields["evidence"],
    )
    problems = info_problems(info)
    if problems:
        raise InputError(problems, source=str(path))
    return info


def _field_problems(fields: Mapping[str, Any], kind: str) -> list[Problem]:
    problems = [
        Problem(name, "missing (required)" if name not in fields else f"is not a {types[0].__name__}")
        for name, types in _FIELDS.items()
        if type(fields.get(name)) not in types
    ]
    problems += [Problem(name[:80], "unknown field") for name in fields if name not in _FIELDS]
    if problems:
        return problems
    each: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("layer_indices", lambda v: type(v) is int, "whole numbers"),
        ("domains", lambda v: isinstance(v, str), "words"),
    )
    problems += [
        Problem(name, f"accepted: a list of {what}")
        for name, holds, what in each
        if not all(holds(v) for v in fields[name])
    ]
    if fields["kind"] != kind:
        problems.append(Problem("kind", f"got {fields['kind']!r}; accepted: {kind!r}"))
    if fields["evidence"] not in GRADES:
        problems.append(Problem("evidence", f"got {fields['evidence']!r}; accepted: {', '.join(GRADES)}"))
    return problems
