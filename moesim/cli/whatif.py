"""``moesim whatif``: vary fields and see what changes, each with its band and what then limits it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.cli.run import ScenarioArgument, SeedOption, SetOption, overrides
from moesim.units import fmt_quantity


def command(
    scenario: ScenarioArgument,
    varied: Annotated[
        list[str],
        typer.Option("--vary", metavar="PATH=V1,V2", help="Values of one field; repeats (all combinations)."),
    ],
    sets: SetOption = None,
    json: bool = JSON_OPTION,
    seed: SeedOption = None,
) -> None:
    """Vary scenario fields and tabulate what changes."""
    from moesim.scenario.vary import parse_axis, vary  # noqa: PLC0415

    axes = [parse_axis(text) for text in varied]
    baseline, points = vary(scenario, axes, overrides(sets, seed), _progress if sys.stderr.isatty() else None)
    before = baseline.metrics[baseline.headline]
    rows: list[dict[str, Any]] = []
    for point in points:
        row: dict[str, Any] = {"set": list(point.overrides)}
        if point.result is None:
            rows.append(row | {"error": point.error})
            continue
        after = point.result.metrics[baseline.headline]
        row["metrics"] = {name: metric.document() for name, metric in point.result.metrics.items()}
        row["change_fraction"] = after.value / before.value - 1
        rows.append(row | {"limiter": point.result.limiter})
    if json:
        emit_json(
            envelope(
                "whatif",
                headline=baseline.headline,
                metrics={name: metric.document() for name, metric in baseline.metrics.items()},
                limiter=baseline.limiter,
                rows=rows,
            )
        )
        return
    shown = [["(as it is)", *_cells(baseline.metrics, baseline.headline), "", baseline.limiter]]
    for point, row in zip(points, rows, strict=True):
        name = " ".join(point.overrides)
        if point.result is None:
            shown.append([name, "-", "-", "-", "does not run: " + point.error.splitlines()[0]])
            continue
        change = f"{100 * row['change_fraction']:+.1f} %"
        cells = _cells(point.result.metrics, baseline.headline)
        shown.append([name, *cells, change, point.result.limiter])
    table(
        baseline.title, ["change", baseline.headline, "80 % band", "against", "limiter"], shown, right=[1, 3]
    )
    for point in points:
        if point.error:
            note(f"{' '.join(point.overrides)}:\n{point.error}")


def _cells(metrics: Any, headline: str) -> list[str]:
    metric = metrics[headline]
    low, high = (fmt_quantity(v, metric.unit) for v in (metric.low, metric.high))
    return [fmt_quantity(metric.value, metric.unit), f"{low} .. {high}"]


def _progress(done: int, total: int) -> None:
    end = "\r" if done + 1 < total else "\n"
    sys.stderr.write(f"point {done + 1} of {total}{end}")
    sys.stderr.flush()
