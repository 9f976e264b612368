"""What readers of other programs' files share: hints from the user, requests to a trace."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.traces.arrays import fault, read_bytes
from moesim.traces.description import DECODE, MAX_EXPERTS, PREFILL, TraceInfo, empty_slot, id_dtype
from moesim.traces.routing import Counts, ExpertCounts, RoutingTrace
from moesim.traces.store import verify_trace

UNKNOWN_MODEL = "unknown"
"""Model of a trace whose file names none."""
EMPTY = -1
"""Mark of an empty slot in the signed ids that readers hand over."""


@dataclass(frozen=True, slots=True)
class Hints:
    """What the user knows about a file and the file does not say.

    Attributes
    ----------
    model : str
        Name kept in the trace.
    num_experts, top_k, num_hidden_layers : int or None
        Shape of the model. [-]
    moe_layers : tuple of int or None
        Model layer numbers of the mixture-of-experts layers.
    source, date : str
        Kept in the trace.
    """

    model: str = ""
    num_experts: int | None = None
    top_k: int | None = None
    num_hidden_layers: int | None = None
    moe_layers: tuple[int, ...] | None = None
    source: str = ""
    date: str = ""

    def need(self, name: str, path: Path) -> int:
        """Value of a hint that a format cannot be read without."""
        value = getattr(self, name)
        if not isinstance(value, int) or value < 1:
            raise fault(path, "the file does not say it; give --model or the option of this name", name)
        return value


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Rows of one request as a reader found them.

    Attributes
    ----------
    ids : ndarray of int, ``(tokens, layers, slots)``
        Logical expert ids; :data:`EMPTY` for none.
    prompt_tokens : int or None
        Rows that are prefill; None for all.
    weights : ndarray, ``(tokens, layers, slots)``, optional
    position, step : ndarray of int, ``(tokens,)``, optional
        Default: 0, 1, 2...
    domain : str
    """

    ids: NDArray[Any]
    prompt_tokens: int | None = None
    weights: NDArray[Any] | None = None
    position: NDArray[Any] | None = None
    step: NDArray[Any] | None = None
    domain: str = "all"


def moe_layers_of(
    requests: Sequence[Request], hints: Hints, path: Path
) -> tuple[list[Request], tuple[int, ...]]:
    """Requests without dense layers, and the model layer numbers of the others.

    Engines that record every hidden layer leave zeros for dense ones. A layer in which every token
    has the same expert in all of its (several) slots never had a router.

    Raises
    ------
    InputError
        Layers that contradict the hints, or none left.
    """
    num_layers = requests[0].ids.shape[1]
    known = hints.moe_layers
    if known is not None and len(known) == num_layers:
        return list(requests), known
    if known is not None:
        if not known or max(known) >= num_layers:
            raise fault(path, f"{num_layers} layers; accepted: the model's {known}"[:200], "layers")
        kept = np.array(known)
    elif requests[0].ids.shape[2] > 1:
        routed = np.zeros(num_layers, np.bool_)
        for request in requests:
            if request.ids.shape[1] != num_layers:
                raise fault(path, "requests have different numbers of layers", "layers")
            routed |= (request.ids != 0).any(axis=(0, 2))
        kept = np.flatnonzero(routed)
    else:
        kept = np.arange(num_layers)
    if not kept.size:
        raise fault(path, "every layer is zero: nothing was recorded", "layers")
    if any(request.ids.shape[1] != num_layers for request in requests):
        raise fault(path, "requests have different numbers of layers", "layers")
    chosen = [
        replace(r, ids=r.ids[:, kept], weights=None if r.weights is None else r.weights[:, kept])
        for r in requests
    ]
    return chosen, tuple(int(i) for i in kept)


def build_trace(
    requests: Sequence[Request], layer_indices: Sequence[int], hints: Hints, *, path: Path, said: str
) -> RoutingTrace:
    """Checked trace of requests.

    Parameters
    ----------
    said : str
        What recorded it; kept in the source.

    Raises
    ------
    InputError
        Shapes that differ, ids out of range, an expert twice in a token.
    """
    requests = [r for r in requests if len(r.ids)]
    if not requests:
        raise fault(path, "no token in it")
    shapes = {r.ids.shape[1:] for r in requests}
    if len(shapes) > 1 or any(r.ids.ndim != 3 for r in requests):
        raise fault(path, f"requests of different shapes {sorted(shapes)}"[:200], "expert_ids")
    ids = np.concatenate([r.ids for r in requests])
    if ids.dtype.kind not in "iu":
        raise fault(path, f"got {ids.dtype}; accepted: whole numbers", "expert_ids")
    ids = ids.astype(np.int64)
    num_experts = hints.num_experts or int(max(ids.max(), 0)) + 1
    low, high = int(ids.min()), int(ids.max())
    if low < EMPTY or high >= num_experts or num_experts > MAX_EXPERTS:
        accepted = f"0 to {min(num_experts, MAX_EXPERTS) - 1}, or {EMPTY} for an empty slot"
        raise fault(path, f"got {low} to {high}; accepted: {accepted}", "expert_ids")
    kind = np.dtype(id_dtype(num_experts))
    lengths = np.array([len(r.ids) for r in requests])
    domains = tuple(dict.fromkeys(r.domain for r in requests))
    if len(domains) > np.iinfo(np.uint8).max:
        raise fault(path, f"{len(domains)} domains; accepted: at most {np.iinfo(np.uint8).max}", "domain")
    info = TraceInfo(
        model=hints.model or UNKNOWN_MODEL,
        num_experts=num_experts,
        layer_indices=tuple(int(i) for i in layer_indices),
        source="; ".join(part for part in (said, hints.source) if part),
        domains=domains,
        date=hints.date,
    )
    places = [np.arange(n) if r.position is None else r.position for r, n in zip(requests, lengths)]  # noqa: B905
    steps = [p if r.step is None else r.step for r, p in zip(requests, places, strict=True)]
    weighted = all(r.weights is not None for r in requests)
    trace = RoutingTrace(
        info=info,
        expert_ids=np.where(ids == EMPTY, empty_slot(kind), ids).astype(kind),
        request_index=np.repeat(np.arange(len(requests)), lengths).astype(np.int32),
        position=_int32(np.concatenate(places), path, "position"),
        step_index=_int32(np.concatenate(steps), path, "step"),
        phase=np.concatenate([_phase(r) for r in requests]),
        domain_index=np.repeat([domains.index(r.domain) for r in requests], lengths).astype(np.uint8),
        gate_weights=_float16([r.weights for r in requests], path) if weighted else None,
    )
    verify_trace(trace, source=str(path))
    return trace


def build_counts(
    counts: NDArray[Any], layer_indices: Sequence[int], hints: Hints, *, path: Path, said: str
) -> ExpertCounts:
    """Checked counts ``(steps, layers, experts)`` without steps in which nothing was counted."""
    if counts.ndim != 3 or counts.dtype.kind not in "iuf" or not counts.size:
        raise fault(path, f"got {counts.dtype} {counts.shape}; accepted: steps, layers, experts", "counts")
    if counts.dtype.kind == "f" and not (np.isfinite(counts).all() and (counts == np.round(counts)).all()):
        raise fault(path, "not whole numbers", "counts")
    if counts.min() < 0 or counts.max() >= np.iinfo(np.int64).max // max(1, counts.size):
        raise fault(path, f"got {counts.min()} to {counts.max()}; accepted: counts >= 0", "counts")
    whole: Counts = counts.astype(np.int64)
    whole = whole[whole.any(axis=(1, 2))]
    if not len(whole):
        raise fault(path, "nothing was counted", "counts")
    if hints.num_experts not in (None, counts.shape[2]):
        raise fault(path, f"{counts.shape[2]} experts; accepted: {hints.num_experts}", "counts")
    info = TraceInfo(
        model=hints.model or UNKNOWN_MODEL,
        num_experts=counts.shape[2],
        layer_indices=tuple(int(i) for i in layer_indices),
        source="; ".join(part for part in (said, hints.source) if part),
        date=hints.date,
    )
    return ExpertCounts(info, whole)


def json_value(path: Path) -> Any:
    """Content of a JSON file.

    Raises
    ------
    InputError
        Not JSON.
    """
    try:
        return json.loads(read_bytes(path))
    except (ValueError, RecursionError):
        raise fault(path, "is not JSON") from None


def json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line of a ``.jsonl`` file (or of one JSON document or list).

    Raises
    ------
    InputError
        Not JSON, not text, or something else than objects.
    """
    try:
        text = read_bytes(path).decode()
    except UnicodeDecodeError:
        raise fault(path, "is not UTF-8 text") from None
    documents: list[tuple[int, Any]] = []
    try:
        whole = json.loads(text) if path.suffix == ".json" else None
        if whole is not None:
            documents = list(enumerate(whole if isinstance(whole, list) else [whole], 1))
        else:
            for number, line in enumerate(text.splitlines(), 1):
                if line.strip():
                    documents.append((number, json.loads(line)))
    except (ValueError, RecursionError):
        where = f"line {len(documents) + 1}: " if path.suffix != ".json" else ""
        raise fault(path, f"{where}is not JSON") from None
    for number, document in documents:
        if not isinstance(document, dict):
            raise fault(path, f"line {number}: is not a JSON object")
        yield number, document


def int_array(value: Any, path: Path, field: str, *, rank: int) -> NDArray[np.int64]:
    """Nested lists of whole numbers as an array of ``rank`` dimensions."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        array = np.empty(0, np.object_)
    if array.ndim != rank or (array.size and array.dtype.kind not in "iu"):
        raise fault(path, f"accepted: whole numbers in {rank} dimensions", field)
    return array.astype(np.int64)


def _phase(request: Request) -> NDArray[np.uint8]:
    tokens = len(request.ids)
    prompt = tokens if request.prompt_tokens is None else request.prompt_tokens
    return np.where(np.arange(tokens) < prompt, PREFILL, DECODE).astype(np.uint8)


def _int32(values: NDArray[Any], path: Path, field: str) -> NDArray[np.int32]:
    if values.dtype.kind not in "iu" or values.min() < 0 or values.max() > np.iinfo(np.int32).max:
        raise fault(path, "accepted: whole numbers from 0 to 2147483647", field)
    return values.astype(np.int32)


def _float16(weights: Sequence[Any], path: Path) -> NDArray[np.float16]:
    whole = np.concatenate([np.asarray(w) for w in weights])
    if whole.dtype.kind not in "iuf" or not np.isfinite(whole).all():
        raise fault(path, "accepted: finite numbers", "gate_weights")
    limit = float(np.finfo(np.float16).max)
    return np.clip(whole.astype(np.float64), -limit, limit).astype(np.float16)


def one_problem(field: str, message: str) -> InputError:
    """Error without a file."""
    return InputError([Problem(field, message)])
