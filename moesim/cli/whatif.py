"""``moesim whatif``: vary fields and see what changes, each with its band and what then limits it."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, refuse_overwriting, table
from moesim.cli.progress import progress
from moesim.cli.run import ScenarioArgument, SeedOption, SetOption, overrides
from moesim.errors import InputError, Problem
from moesim.units import fmt_quantity

if TYPE_CHECKING:
    from moesim.scenario.result import Result
    from moesim.scenario.vary import Point

DOCUMENT = "whatif.json"


def command(
    scenario: ScenarioArgument,
    varied: Annotated[
        list[str] | None,
        typer.Option("--vary", metavar="PATH=V1,V2", help="Values of one field; repeats (all combinations)."),
    ] = None,
    against: Annotated[
        list[str] | None,
        typer.Option(metavar="SCENARIO", help="Another scenario of the same question beside it; repeats."),
    ] = None,
    sets: SetOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Write whatif.json, the page and its figures here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite results in --out.")] = False,
    json: bool = JSON_OPTION,
    seed: SeedOption = None,
) -> None:
    """Vary scenario fields, or set other scenarios beside one, and tabulate what changes."""
    from moesim.scenario.vary import parse_axis, vary  # noqa: PLC0415

    axes = [parse_axis(text) for text in varied or []]
    if not axes and not against:
        raise InputError([Problem("--vary", "nothing to compare; accepted: --vary or --against")])
    refuse_overwriting(out, DOCUMENT, force=force)
    total = 1 + (prod(map(len, axes)) if axes else 0) + len(against or [])
    with progress("runs", total) as tick:
        baseline, points = vary(scenario, axes, overrides(sets, seed), against=against or [], tick=tick)
    document = _document(baseline, points)
    written = [] if out is None else _write(document, out)
    if json:
        emit_json(document)
        return
    _show(document)
    for path in written:
        note(f"wrote {path}")


def _document(baseline: Result, points: list[Point]) -> dict[str, Any]:
    from moesim.scenario.vary import AS_IT_IS  # noqa: PLC0415

    before = baseline.metrics[baseline.headline].value
    rows: list[dict[str, Any]] = []
    for point in points:
        row: dict[str, Any] = {"label": point.label, "set": list(point.overrides)}
        if point.result is None:
            rows.append(row | {"error": point.error})
            continue
        change = point.result.metrics[baseline.headline].value / before - 1
        rows.append(row | _found(point.result) | {"change_fraction": change})
    first = {"label": AS_IT_IS} | _found(baseline)
    return envelope(
        "whatif",
        title=baseline.title,
        answer=_answer(baseline, rows),
        headline=baseline.headline,
        metrics=first["metrics"],
        limiter=baseline.limiter,
        baseline=first,
        rows=rows,
    )


def _found(result: Result) -> dict[str, Any]:
    document = result.document(with_views=False)
    return {"metrics": document["metrics"], "limiter": result.limiter, "breakdown": document["breakdown"]}


def _answer(baseline: Result, rows: list[dict[str, Any]]) -> str:
    """What moves the headline most, and whether its band stays clear of the baseline's."""
    name, before = baseline.headline, baseline.metrics[baseline.headline]
    start = f"{name} is {fmt_quantity(before.value, before.unit)} as it is"
    ran = [row for row in rows if "metrics" in row]
    if not ran:
        return f"{start}; no variant runs."
    most = max(ran, key=lambda row: abs(row["change_fraction"]))
    after = most["metrics"][name]
    text = f"{start}; {most['label']} moves it most: {fmt_quantity(after['value'], before.unit)}"
    text += f" ({100 * most['change_fraction']:+.1f} %)"
    if before.low is not None and before.high is not None and "low" in after:
        apart = after["low"] > before.high or after["high"] < before.low
        text += ", bands apart." if apart else ", bands overlap."
    return text


def _write(document: dict[str, Any], out: Path) -> list[Path]:
    from moesim.files import write_json  # noqa: PLC0415
    from moesim.report.whatif_page import write_whatif_figures, write_whatif_page  # noqa: PLC0415

    page = write_whatif_page(document, out / "report.html")
    return [page, write_json(out / DOCUMENT, document), *write_whatif_figures(document, out)]


def _show(document: dict[str, Any]) -> None:
    name = document["headline"]
    shown = []
    for row in [document["baseline"], *document["rows"]]:
        if "error" in row:
            shown.append([row["label"], "-", "-", "-", "does not run: " + row["error"].splitlines()[0]])
            continue
        metric = row["metrics"][name]
        value, low, high = (
            fmt_quantity(metric.get(part, metric["value"]), metric["unit"])
            for part in ("value", "low", "high")
        )
        change = f"{100 * row['change_fraction']:+.1f} %" if "change_fraction" in row else ""
        shown.append([row["label"], value, f"{low} .. {high}", change, row["limiter"]])
    table(document["title"], ["change", name, "80 % band", "against", "limiter"], shown, right=[1, 3])
    for row in document["rows"]:
        if "error" in row:
            note(f"{row['label']}:\n{row['error']}")
