"""``moesim trace locality`` and ``moesim trace shifts``: what caches and placements meet in a trace."""

from __future__ import annotations

from typing import Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.cli.trace_common import SEED, TRACE, loaded

RATIOS = (1.0, 1.5, 2.0, 3.0, 4.0)


def locality(
    trace: str = TRACE,
    *,
    segment: int = typer.Option(16, min=1, help="Tokens of a segment. [tokens]"),
    tokens: int = typer.Option(4096, min=1, help="First tokens that are measured. [tokens]"),
    as_json: bool = JSON_OPTION,
) -> None:
    """Segment routing (SRP), segment cache (SCH) and LRU, LFU, Belady hit rates by cache size."""
    from moesim.traces import locality as measures  # noqa: PLC0415
    from moesim.traces.statistics import lru_hit_fraction  # noqa: PLC0415

    found = loaded(trace)
    found = found.window(0, min(tokens, found.num_tokens))
    ratios = [r for r in RATIOS if r * found.top_k <= found.num_experts]
    sizes = [round(r * found.top_k) for r in ratios]
    _, model = measures.segment_routing_performance(found, segment)
    columns = {
        "sch": measures.segment_cache_hit_fraction(found, segment, ratios),
        "lru": lru_hit_fraction(found.expert_ids, found.num_experts, sizes),
    }
    for policy in measures.CACHE_POLICIES:
        columns[policy] = measures.cache_hit_fraction(found.expert_ids, found.num_experts, sizes, policy)
    rows: list[dict[str, Any]] = [
        {"cache_ratio": ratio, "experts": size} | {n: float(v[i].mean()) for n, v in columns.items()}
        for i, (ratio, size) in enumerate(zip(ratios, sizes, strict=True))
    ]
    if as_json:
        metrics = {"srp": {"value": model, "unit": "fraction", "segment_tokens": segment}}
        emit_json(envelope("trace locality", metrics=metrics, rows=rows))
        return
    title = f"SRP({segment}) = {model:.4f}; hit rates over {found.num_tokens:,} tokens, mean over layers"
    cells = [
        [f"{row['cache_ratio']:g}k", row["experts"], *(f"{row[n]:.4f}" for n in columns)] for row in rows
    ]
    names = [f"SCH({segment})", "LRU", "LFU", "Belady"]
    table(title, ["cache", "experts", *names], cells, right=range(6))


def shifts(
    trace: str = TRACE,
    *,
    window: int = typer.Option(1000, min=1, help="Tokens of a window. [tokens]"),
    ranks: int = typer.Option(8, min=1, help="Ranks that experts are dealt to in order."),
    seed: int = SEED,
    as_json: bool = JSON_OPTION,
) -> None:
    """Imbalance by batch size, ranks a token needs, drift over time and distance of domains."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces import shifts as measures  # noqa: PLC0415
    from moesim.traces.statistics import TOUCH_BATCHES  # noqa: PLC0415

    found = loaded(trace)
    rng = rng_for(seed, "trace/shifts")
    imbalance = measures.batch_imbalance_ratio(found, ranks, TOUCH_BATCHES, rng).mean(axis=1)
    metrics: dict[str, dict[str, Any]] = {
        f"imbalance_ratio_batch_{size}": {"value": float(value), "unit": "ratio"}
        for size, value in zip(TOUCH_BATCHES, imbalance, strict=True)
    }
    metrics["ranks_per_token"] = {"value": float(measures.fan_out(found, ranks).mean()), "unit": ""}
    supers = float(measures.super_experts(found.counts()).mean())
    metrics["super_experts"] = {"value": supers, "unit": ""}
    if found.num_tokens >= 2 * window:
        cosine, divergence = measures.drift(found, window)
        metrics["drift_cosine"] = {"value": float(cosine.mean()), "unit": ""}
        metrics["drift_jensen_shannon_nats"] = {"value": float(divergence.mean()), "unit": "nat"}
    names = found.info.domains
    apart = measures.domain_cosine_fraction(found)
    rows = [{"domain": n} | dict(zip(names, map(float, apart[i]), strict=True)) for i, n in enumerate(names)]
    if as_json:
        emit_json(envelope("trace shifts", metrics=metrics, rows=rows))
        return
    cells = [[name, f"{metric['value']:.4g}"] for name, metric in metrics.items()]
    table(f"{found.num_tokens:,} tokens of {found.info.model}, mean over layers", ["", ""], cells, right=(1,))
    if len(names) > 1:
        cells = [[str(row["domain"]), *(f"{row[n]:.3f}" for n in names)] for row in rows]
        table("Cosine of the loads of two domains", ["", *names], cells, right=range(1, 1 + len(names)))
