"""Text that any program can write: CSV with a row a token and layer, JSON lines with a line a token."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import write_text
from moesim.traces.arrays import fault, read_bytes
from moesim.traces.description import PHASES
from moesim.traces.formats import formats
from moesim.traces.interchange import EMPTY, Hints, Request, build_trace, int_array, json_lines
from moesim.traces.replay import routing_only
from moesim.traces.routing import ExpertCounts, RoutingTrace

_HEAD = ("request", "position", "step", "phase", "domain", "layer")


@formats.register("csv")
@dataclass(frozen=True)
class Csv:
    """Columns ``request, position, layer, expert0..`` and optional ``step, phase, domain, weight0..``."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """Rows in any order of layers; rows of a token must follow each other."""
        try:
            text = read_bytes(path).decode()
            rows = csv.DictReader(io.StringIO(text, newline=""))
            names = list(rows.fieldnames or [])
            slots = sum(n.startswith("expert") for n in names)
            weighted = "weight0" in names
            missing = [n for n in ("request", "layer", "expert0") if n not in names]
            if missing:
                raise fault(path, f"missing columns: {', '.join(missing)}")
            table = _Table(path)
            for number, row in enumerate(rows, 2):
                ids = [_number(row, f"expert{i}", number, path, EMPTY) for i in range(slots)]
                weights = [_real(row, f"weight{i}", number, path) for i in range(slots)] if weighted else None
                at = {n: _number(row, n, number, path, 0) for n in ("request", "layer")}
                key = (at["request"], _number(row, "position", number, path, -1), row.get("domain") or "all")
                step = _number(row, "step", number, path, -1)
                table.add(key, at["layer"], ids, weights, step, row.get("phase") or PHASES[0])
        except UnicodeDecodeError:
            raise fault(path, "is not UTF-8 text") from None
        except csv.Error as error:
            raise fault(path, f"is not CSV: {error}") from None
        return table.trace(hints, "CSV table")

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write everything the trace knows."""
        trace = routing_only(trace)
        slots = range(trace.top_k)
        stream = io.StringIO(newline="")
        out = csv.writer(stream, lineterminator="\n")
        weights = [f"weight{i}" for i in slots] if trace.gate_weights is not None else []
        out.writerow([*_HEAD, *(f"expert{i}" for i in slots), *weights])
        for token in _tokens(trace):
            head = [token[name] for name in _HEAD[:-1]]
            for index, layer in enumerate(trace.info.layer_indices):
                values = token["weights"][index] if weights else []
                out.writerow([*head, layer, *token["experts"][index], *values])
        return [write_text(path, stream.getvalue())]


@formats.register("jsonl")
@dataclass(frozen=True)
class Jsonl:
    """A line a token: ``request``, ``experts`` (a list a layer), optional ``layers``, ``weights``..."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace:
        """Layers are numbered from 0 unless the line (or the first) says ``layers``."""
        table = _Table(path)
        layers: list[int] | None = None
        for number, line in json_lines(path):
            ids = int_array(line.get("experts"), path, f"experts of line {number}", rank=2)
            if layers is None or "layers" in line:
                layers = int_array(
                    line.get("layers", list(range(len(ids)))), path, f"layers of line {number}", rank=1
                ).tolist()
            if len(layers) != len(ids):
                raise fault(path, f"line {number}: {len(ids)} layers; accepted: {len(layers)}", "experts")
            weights = line.get("weights")
            if weights is not None:
                weights = _reals(weights, ids.shape, number, path)
            given = {n: line.get(n, d) for n, d in (("request", 0), ("position", -1), ("step", -1))}
            if not all(type(v) is int and -1 <= v < 2**31 for v in given.values()):
                raise fault(path, f"line {number}: accepted: whole numbers >= 0", "request, position, step")
            words = {n: line.get(n, d) for n, d in (("domain", "all"), ("phase", PHASES[0]))}
            if not all(isinstance(v, str) for v in words.values()):
                raise fault(path, f"line {number}: accepted: words", "domain, phase")
            key = (
                given["request"],
                given["position"] if given["position"] >= 0 else -number - 1,
                words["domain"],
            )
            for index, layer in enumerate(layers):
                row = None if weights is None else weights[index].tolist()
                table.add(key, layer, ids[index].tolist(), row, given["step"], words["phase"])
        return table.trace(hints, "JSON lines")

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write everything the trace knows; the first line names the layers."""
        trace = routing_only(trace)
        lines = []
        for number, token in enumerate(_tokens(trace)):
            if not number:
                token["layers"] = list(trace.info.layer_indices)
            lines.append(json.dumps(token))
        return [write_text(path, "\n".join(lines) + "\n")]


@dataclass
class _Table:
    """Rows put together into requests."""

    path: Path
    tokens: dict[tuple[int, int, str], dict[int, tuple[list[int], list[float] | None]]] = field(
        default_factory=dict
    )
    labels: dict[tuple[int, int, str], tuple[int, str]] = field(default_factory=dict)

    def add(
        self,
        key: tuple[int, int, str],
        layer: int,
        ids: list[int],
        weights: list[float] | None,
        step: int,
        phase: str,
    ) -> None:
        if phase not in PHASES:
            raise fault(self.path, f"got {phase!r}; accepted: {', '.join(PHASES)}"[:120], "phase")
        layers = self.tokens.setdefault(key, {})
        if layer in layers:
            message = f"request {key[0]}, position {key[1]} has layer {layer} twice"
            raise fault(self.path, message, "layer")
        layers[layer] = (ids, weights)
        self.labels.setdefault(key, (step, phase))

    def trace(self, hints: Hints, said: str) -> RoutingTrace:
        if not self.tokens:
            raise fault(self.path, "no token in it")
        layers = sorted(next(iter(self.tokens.values())))
        if any(sorted(found) != layers for found in self.tokens.values()):
            raise fault(self.path, "tokens with different layers", "layer")
        by_request: dict[tuple[int, str], list[tuple[int, int, str]]] = {}
        for key in self.tokens:
            by_request.setdefault((key[0], key[2]), []).append(key)
        if len(by_request) > len({number for number, _ in by_request}):
            raise fault(self.path, "one request has several domains", "domain")
        requests = [self._request(by_request[which], layers) for which in sorted(by_request)]
        return build_trace(requests, layers, hints, path=self.path, said=said)

    def _request(self, keys: list[tuple[int, int, str]], layers: Sequence[int]) -> Request:
        phases = [self.labels[key][1] for key in keys]
        prompt = phases.count(PHASES[0])
        if PHASES[0] in phases[prompt:]:
            raise fault(self.path, f"request {keys[0][0]}: prefill after decode", "phase")
        found = [[self.tokens[key][layer] for layer in layers] for key in keys]
        widths = {len(ids) for row in found for ids, _ in row}
        if len(widths) > 1:
            raise fault(self.path, "different numbers of experts in a row", "experts")
        weights = [[w for _, w in row] for row in found]
        weighted = all(w is not None for row in weights for w in row)
        position = [key[1] for key in keys]
        step = [self.labels[key][0] for key in keys]
        return Request(
            np.array([[ids for ids, _ in row] for row in found], np.int64),
            prompt,
            weights=np.array(weights, np.float64) if weighted else None,
            position=np.array(position) if min(position) >= 0 else None,
            step=np.array(step) if min(step) >= 0 else None,
            domain=keys[0][2],
        )


def _tokens(trace: RoutingTrace) -> Iterator[dict[str, Any]]:
    """Each row as words and numbers; an empty slot is -1."""
    for row in range(trace.num_tokens):
        ids = trace.expert_ids[row].astype(np.int64)
        token: dict[str, Any] = {
            "request": int(trace.request_index[row]),
            "position": int(trace.position[row]),
            "step": int(trace.step_index[row]),
            "phase": PHASES[trace.phase[row]],
            "domain": trace.info.domains[trace.domain_index[row]],
            "experts": np.where(ids == trace.empty_slot, EMPTY, ids).tolist(),
        }
        if trace.gate_weights is not None:
            token["weights"] = trace.gate_weights[row].tolist()
        yield token


def _number(row: Mapping[str, Any], name: str, line: int, path: Path, default: int) -> int:
    text = row.get(name)
    if text is None or text == "":
        return default
    try:
        value = int(text) if len(text) < 20 else None
    except (ValueError, TypeError):
        value = None
    if value is None or not -1 <= value < 2**31:
        raise fault(path, f"line {line}: got {text!r}"[:120] + "; accepted: a whole number", name)
    return value


def _real(row: Mapping[str, Any], name: str, line: int, path: Path) -> float:
    try:
        return float(row.get(name) or 0)
    except (ValueError, TypeError):
        raise fault(path, f"line {line}: accepted: a number", name) from None


def _reals(value: Any, shape: tuple[int, ...], line: int, path: Path) -> NDArray[np.float64]:
    try:
        array = np.asarray(value, np.float64)
    except (ValueError, TypeError, RecursionError, OverflowError):
        array = np.empty(0)
    if array.shape != shape:
        raise fault(path, f"line {line}: accepted: numbers of shape {shape}", "weights")
    return array
