"""``moesim train drift``: steps one after another while expert loads move, under several answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, refuse_overwriting, table
from moesim.cli.progress import progress
from moesim.cli.run import ScenarioArgument, SeedOption, SetOption, overrides
from moesim.units import fmt_seconds

ANSWERS = ("none", "greedy", "llep")


def drift(  # noqa: PLR0917 - options of the command line
    scenario: ScenarioArgument,
    sets: SetOption = None,
    *,
    steps: Annotated[int, typer.Option(help="Steps in a row.")] = 12,
    fraction: Annotated[
        float, typer.Option("--drift", help="Part of an expert's log load renewed in a step. [-]")
    ] = 0.1,
    every: Annotated[int, typer.Option(help="Steps between two placements.")] = 4,
    answer: Annotated[
        list[str] | None,
        typer.Option(help="none, llep (helpers get weights), or a placement method; repeats."),
    ] = None,
    seed: SeedOption = None,
    json: bool = JSON_OPTION,
    out: Annotated[Path | None, typer.Option(help="Write drift.json, a page and a picture here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite results in --out.")] = False,
) -> None:
    """Step times while expert loads drift: experts left alone, placed anew, or helped out."""
    from moesim.report.drift_page import COLUMNS  # noqa: PLC0415
    from moesim.scenario.resolve import resolve  # noqa: PLC0415
    from moesim.scenario.train_drift import Drift, run_drift  # noqa: PLC0415
    from moesim.scenario.train_search import common_of  # noqa: PLC0415

    refuse_overwriting(out, "drift.json", force=force)
    resolved = resolve(scenario, overrides(sets, seed))
    common = common_of(resolved)
    asked = Drift(steps, fraction, every)
    answers = answer or list(ANSWERS)
    with progress("steps", steps * len(answers)) as tick:
        rows = run_drift(resolved, common, asked, answers, tick)
    best = min(rows[:-1], key=lambda row: float(row["mean_step_s"]))
    document = envelope(
        "train drift",
        scenario=resolved.scenario.name,
        title=resolved.scenario.description or resolved.scenario.name,
        drift={"steps": steps, "fraction": fraction, "every": every},
        answer=_answer(rows, best),
        metrics={"mean_step_s": {"value": best["mean_step_s"], "unit": "s"}},
        rows=rows,
        warnings=list(common.windows.warnings),
    )
    if out is not None:
        note("wrote " + ", ".join(str(path) for path in _written(document, out)))
    if json:
        emit_json(document)
        return
    typer.echo(document["answer"])
    table("Steps while loads drift", COLUMNS, cells(rows), right=range(1, 6))


def _answer(rows: list[dict[str, Any]], best: dict[str, Any]) -> str:
    even_s = rows[-1]["mean_step_s"]
    told = [f"{row['answer']} {100 * (row['mean_step_s'] / even_s - 1):+.1f} %" for row in rows[:-1]]
    return f"Over balanced experts ({fmt_seconds(even_s)} a step): {', '.join(told)}; best: {best['answer']}."


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Table of the answers."""
    return [
        [
            row["answer"],
            fmt_seconds(row["mean_step_s"]),
            fmt_seconds(row["worst_step_s"]),
            f"{row['mean_imbalance_ratio']:.2f}x",
            f"{row['moved_experts']:,}",
            fmt_seconds(row["move_s"]) if row["move_s"] else "-",
        ]
        for row in rows
    ]


def _written(document: dict[str, Any], out: Path) -> list[Path]:
    from moesim.files import write_json  # noqa: PLC0415
    from moesim.report.drift_page import write_drift_figure, write_drift_page  # noqa: PLC0415

    return [
        write_json(out / "drift.json", document),
        write_drift_page(document, out / "drift.html", cells(document["rows"])),
        write_drift_figure(document, out / "drift.png"),
    ]
