"""``moesim trace cache``: a trace replayed through expert caches, policy beside policy."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.cli.trace_common import SEED, TRACE, loaded
from moesim.errors import InputError

BOUND = "belady:bypass=true,warm=true"
"""The optimum of policies that may leave a missing expert outside."""

if TYPE_CHECKING:
    from moesim.memory.demand import Demand


def cache(
    trace: str = TRACE,
    *,
    slots: str = typer.Option("", help="Experts held a layer, comma-separated; default 1 to 4 times top-k."),
    policy: list[str] = typer.Option(  # noqa: B008
        [], help="Policy, repeats: NAME or NAME:FIELD=VALUE,...; default all."
    ),
    tokens: int = typer.Option(4096, min=1, help="First tokens that are replayed. [tokens]"),
    tokens_per_pass: int = typer.Option(1, min=1, help="Tokens looked up together. [tokens]"),
    pooled: bool = typer.Option(False, "--pooled", help="One cache of all layers instead of one a layer."),
    seed: int = SEED,
    as_json: bool = JSON_OPTION,
) -> None:
    """Hit rates of expert caches by policy and size, and relative to the optimum."""
    from moesim.memory.caches import cache_policies, replay  # noqa: PLC0415
    from moesim.memory.caches.cache import check_slots  # noqa: PLC0415
    from moesim.memory.demand import demand_of  # noqa: PLC0415

    found = loaded(trace)
    demand = demand_of(found.window(0, min(tokens, found.num_tokens)), tokens_per_pass)
    sizes = _sizes(slots, demand, found.top_k)
    for size in sizes:
        check_slots(size, demand, field="--slots")
    served = demand.pooled() if pooled else demand
    per_row = demand.num_layers if pooled else 1
    names = policy or cache_policies.names()
    rows: list[dict[str, Any]] = []
    for size in sizes:
        for text in dict.fromkeys(["belady", BOUND, *names]):
            name, params = _policy(text)
            built = cache_policies.build(name, params, field="--policy")
            _progress(f"{size} slots, {text}")
            done = replay(served, built, size * per_row, seed=seed)
            rows.append(
                {"slots": size, "policy": text, "bypasses": built.bypasses, "hit_fraction": done.hit_fraction}
            )
    _progress("")
    best = {(r["slots"], r["bypasses"]): r["hit_fraction"] for r in rows if r["policy"].startswith("belady")}
    for row in rows:
        row["relative_fraction"] = row["hit_fraction"] / max(
            best[row["slots"], row["bypasses"]], sys.float_info.min
        )
    if as_json:
        emit_json(envelope("trace cache", rows=rows, lookups=int(done.lookups.sum())))
        return
    cells = [
        [r["slots"], r["policy"], f"{100 * r['hit_fraction']:.2f} %", f"{100 * r['relative_fraction']:.1f} %"]
        for r in rows
    ]
    title = (
        f"{found.info.model}: {demand.num_passes:,} passes, {demand.num_layers} layers, {demand.num_experts} "
        f"experts{', one pool' if pooled else ''}"
    )
    table(title, ["slots a layer", "policy", "hits", "of the optimum"], cells, right=(0, 2, 3))


def _sizes(text: str, demand: Demand, top_k: int) -> list[int]:
    if not text:
        sizes = [ratio * max(top_k, demand.largest) for ratio in (1, 2, 3, 4)]
        return [size for size in sizes if size <= demand.num_experts] or [demand.num_experts]
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError.at("--slots", text, "whole numbers with commas between") from None


def _policy(text: str) -> tuple[str, dict[str, Any]]:
    from moesim.cli.trace_common import assignment  # noqa: PLC0415

    name, _, parameters = text.partition(":")
    return name, dict(assignment(part) for part in parameters.split(",") if part)


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text}")
        sys.stderr.flush()
