"""``moesim placement replicas``: slots for replicas against memory for the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.cli.progress import progress
from moesim.errors import InputError, Problem
from moesim.units import MS, fmt_bytes, fmt_quantity, fmt_seconds

if TYPE_CHECKING:
    from moesim.scenario.replicas import ReplicaPoint

RATE, LATENCY = "output_tokens_per_s", "tpot_s"


def replicas(
    scenario: Annotated[str, typer.Argument(help="Decode scenario, a shipped name or a file.")],
    *,
    redundant: Annotated[str, typer.Option(help="Replicas a layer to compare, such as 0,16,32.")],
    method: Annotated[str, typer.Option(help="Placement method.")] = "eplb_swaps",
    max_sequences: Annotated[
        int | None, typer.Option(min=1, help="Sequences that there are for an attention group.")
    ] = None,
    max_tpot_ms: Annotated[float | None, typer.Option(min=0, help="Longest step allowed.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="dotted.path=value; repeats.")] = None,
    json: bool = JSON_OPTION,
) -> None:
    """Sweep replicas: memory left for the cache, concurrency, tokens a second."""
    from moesim.scenario.replicas import best, replica_sweep  # noqa: PLC0415

    numbers = _numbers(redundant)
    own = [*(overrides or []), f"placement.method={method}"]
    with progress("replicas", len(numbers)) as tick:
        points = replica_sweep(
            scenario,
            numbers,
            own,
            most_sequences=max_sequences,
            latency_s=None if max_tpot_ms is None else max_tpot_ms * MS,
            tick=tick,
        )
    winner = best(points)
    document = envelope(
        "placement replicas",
        scenario=scenario,
        method=method,
        metrics={
            "best_redundant_experts": {"value": winner.redundant_experts, "unit": "count"},
            "best_sequences": {"value": winner.sequences, "unit": "count"},
            f"best_{RATE}": _metric(winner, RATE),
            f"best_{LATENCY}": _metric(winner, LATENCY),
        },
        rows=[_row(point) for point in points],
    )
    if json:
        emit_json(document)
    else:
        _show(document, winner)


def _numbers(text: str) -> list[int]:
    try:
        return list(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        raise InputError(
            [Problem("--redundant", f"got {text!r}; accepted: whole numbers and commas")]
        ) from None


def _metric(point: ReplicaPoint, name: str) -> dict[str, Any] | None:
    metric = point.metric(name)
    return None if metric is None else metric.document()


def _row(point: ReplicaPoint) -> dict[str, Any]:
    return {
        "redundant_experts": point.redundant_experts,
        "expert_bytes": point.expert_bytes,
        "kv_blocks": point.kv_blocks,
        "sequences": point.sequences,
        "limited_by": point.limited_by,
        "imbalance_ratio": _metric(point, "imbalance_ratio"),
        LATENCY: _metric(point, LATENCY),
        RATE: _metric(point, RATE),
    }


def _show(document: dict[str, Any], winner: ReplicaPoint) -> None:
    top = document["metrics"][f"best_{RATE}"]["value"]
    rows = []
    for row in document["rows"]:
        rate, tpot, ratio = row[RATE], row[LATENCY], row["imbalance_ratio"]
        rows.append(
            [
                row["redundant_experts"],
                fmt_bytes(row["expert_bytes"]),
                f"{row['kv_blocks']:,}",
                row["sequences"],
                row["limited_by"],
                f"{ratio['value']:.3f}" if ratio else "",
                fmt_seconds(tpot["value"]) if tpot else "does not fit",
                fmt_quantity(rate["value"], "tokens_per_s") if rate else "",
                _band(rate) if rate else "",
                f"{100 * (rate['value'] / top - 1):+.1f} %" if rate else "",
            ]
        )
    columns = ["replicas", "experts a rank", "KV blocks", "sequences", "limited by", "max/mean", "step"]
    columns += ["rate", "80 % band", "against best"]
    table("Replicas against cache", columns, rows, right=[0, 1, 2, 3, 5, 6, 7, 8, 9])
    note(
        f"best: {winner.redundant_experts} replicas; bands of the rows move together (one calibration), "
        "so the last column is surer than they are"
    )


def _band(metric: dict[str, Any]) -> str:
    if "low" not in metric:
        return ""
    return " to ".join(fmt_quantity(metric[end], "tokens_per_s") for end in ("low", "high"))
