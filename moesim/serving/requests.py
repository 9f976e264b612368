"""Workloads from descriptions: arrival process, lengths, shared starts, turns, or a file of requests."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.evidence import rng_for
from moesim.serving.cache import Segments
from moesim.serving.policies import Arrivals, Lengths
from moesim.serving.workload import Workload
from moesim.units import MS, PS_PER_S

FIELDS = {
    "arrival_s": ("arrival_s", "arrival_time", "timestamp_s"),
    "input_tokens": ("input_tokens", "input_toks", "input_length", "ContextTokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "output_toks", "output_length", "GeneratedTokens"),
}
"""Names under which public request traces have what is needed; ``timestamp`` is in milliseconds."""
MOST_PROBLEMS = 50
"""A file that is wrong throughout is told by its first problems."""
HASH_TOKENS = 512
"""Tokens behind each entry of ``hash_ids`` in published traces that have them."""


def open_loop(
    arrivals: Arrivals, inputs: Lengths, outputs: Lengths, num_requests: int, *, seed: int, warmup: int = 0
) -> Workload:
    """Requests that come whatever the service does."""
    times = arrivals.times(num_requests, rng_for(seed, "serving/arrivals"))
    return Workload.of(times, *_lengths(inputs, outputs, num_requests, seed), warmup=warmup)


def closed_loop(
    clients: int,
    ramp_s: float,
    inputs: Lengths,
    outputs: Lengths,
    num_requests: int,
    *,
    seed: int,
    warmup: int = 0,
) -> Workload:
    """``clients`` users, each with one request at a time, who start evenly over ``ramp_s``."""
    starts = np.zeros(num_requests)
    first = min(clients, num_requests)
    starts[:first] = ramp_s * np.arange(first) / first
    lengths = _lengths(inputs, outputs, num_requests, seed)
    return Workload.of(starts, *lengths, clients=clients, warmup=warmup)


def _lengths(
    inputs: Lengths, outputs: Lengths, num_requests: int, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return (
        inputs.draw(num_requests, rng_for(seed, "serving/input_tokens")),
        outputs.draw(num_requests, rng_for(seed, "serving/output_tokens")),
    )


def with_prefixes(workload: Workload, groups: int, tokens: int, *, seed: int) -> Workload:
    """The same requests, whose prompts now begin with one of ``groups`` starts of ``tokens`` tokens each."""
    which = rng_for(seed, "serving/prefixes").integers(groups, size=workload.num_requests)
    segments: tuple[Segments, ...] = tuple(((int(group), tokens),) for group in which)
    return replace(workload, input_tokens=workload.input_tokens + tokens, segments=segments)


def with_turns(workload: Workload, turns: int, think_s: float) -> Workload:
    """Conversations of ``turns`` requests: each prompt holds all that was said before it.

    Consecutive requests become a conversation; the arrival of its first is that of the conversation.
    """
    count = workload.num_requests
    turn = np.arange(count) % turns
    after = np.where(turn > 0, np.arange(count) - 1, -1)
    arrival = np.where(turn > 0, round(think_s * PS_PER_S), workload.arrival_ps)
    inputs = workload.input_tokens.copy()
    segments: list[Segments] = []
    taken = max((name for chain in workload.segments or () for name, _ in chain), default=-1) + 1
    for request in range(count):
        chain = workload.segments[request] if workload.segments else ()
        if turn[request]:
            said = int(inputs[request - 1] + workload.output_tokens[request - 1])
            before = segments[-1]
            # the last token of an answer is not in the cache: nothing came after it
            chain = (*before, (taken + request - 1, said - 1 - sum(n for _, n in before)))
            inputs[request] += said
        segments.append(chain)
    return replace(
        workload,
        arrival_ps=arrival,
        input_tokens=inputs,
        after=after,
        segments=tuple(segments),
        keeps=taken + np.arange(count),
    )


def read_requests(path: Path, *, limit: int | None = None, warmup: int = 0) -> Workload:
    """Requests of a CSV or JSON-lines file with arrival, prompt and answer of each.

    Raises
    ------
    InputError
        Missing or broken values, each with file and line.
    """
    rows = list(_rows(path))[:limit]
    if not rows:
        raise InputError([Problem("workload.file", "holds no request", str(path))])
    columns, problems = {}, list[Problem]()
    for name in FIELDS:
        columns[name] = [_value(row, name, f"{path}:{line}", problems) for line, row in rows]
    if problems:
        problems.sort(key=lambda problem: int(problem.where.rpartition(":")[2]))
        raise InputError(problems[:MOST_PROBLEMS])
    arrival = np.array(columns["arrival_s"])
    arrival = arrival - (arrival.min() if arrival.min() > 0 else 0.0)
    inputs, outputs = (np.array(columns[n]).astype(np.int64) for n in ("input_tokens", "output_tokens"))
    workload = Workload.of(arrival, inputs, outputs, warmup=warmup)
    if not any("hash_ids" in row for _, row in rows):
        return workload
    chains = [row.get("hash_ids", []) for _, row in rows]
    segments = tuple(
        tuple((int(name), HASH_TOKENS) for name in chain[: int(tokens) // HASH_TOKENS])
        for chain, tokens in zip(chains, inputs.tolist(), strict=True)
    )
    return replace(workload, segments=segments)


def _rows(path: Path) -> Iterable[tuple[int, dict[str, Any]]]:
    """Line number and fields of each request."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        message = f"cannot be read: {error}"
        raise InputError([Problem("workload.file", message, str(path))]) from None
    if path.suffix == ".csv":
        yield from enumerate(csv.DictReader(text.splitlines()), 2)
        return
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                where = f"{path}:{number}"
                message = f"no JSON: {error}"
                raise InputError([Problem("workload.file", message, where)]) from None
            if not isinstance(row, dict):
                where = f"{path}:{number}"
                raise InputError([Problem("workload.file", "a line is no object", where)])
            yield number, row


def _value(row: dict[str, Any], name: str, where: str, problems: list[Problem]) -> float:
    """A number of a request; what is wrong with it is added to ``problems``."""
    scale = 1.0
    found = next((row[key] for key in FIELDS[name] if key in row), None)
    if found is None and name == "arrival_s" and "timestamp" in row:
        found, scale = row["timestamp"], MS
    least = 0.0 if name == "arrival_s" else 1.0
    try:
        value = float(found) * scale  # type: ignore[arg-type]  # None is told below
    except (TypeError, ValueError):
        value = float("nan")
    if not (np.isfinite(value) and value >= least):
        accepted = f"a number from {least:g} on, in one of {', '.join(FIELDS[name])}"
        problems.append(Problem(f"workload.file.{name}", f"got {found!r}; accepted: {accepted}", where))
    return value
