"""``moesim train search``: the fastest plans of a training scenario that fit its machine."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, refuse_overwriting, table
from moesim.cli.progress import tallied
from moesim.cli.run import ScenarioArgument, SeedOption, SetOption, overrides
from moesim.errors import InputError
from moesim.units import fmt_bytes, fmt_quantity, fmt_seconds

if TYPE_CHECKING:
    from moesim.scenario.resolve import Resolved
    from moesim.scenario.training import Common
    from moesim.training.recompute import Recompute
    from moesim.training.tuning import Tuned

PROCESSES_MAX = 8

Values = Annotated[str, typer.Option(metavar="N,N,...", help="Values that are tried.")]


def search(  # noqa: PLR0917 - options of the command line
    scenario: ScenarioArgument,
    sets: SetOption = None,
    *,
    tp: Values = "",
    cp: Values = "",
    pp: Values = "",
    vpp: Values = "",
    ep: Values = "",
    etp: Values = "",
    micro_batch: Values = "",
    schedules: Annotated[str, typer.Option(metavar="NAME,...", help="Registered schedules.")] = "",
    recompute: Annotated[
        list[str] | None,
        typer.Option(help="none, full, or modules joined by commas; repeats, lightest first."),
    ] = None,
    keep: Annotated[int, typer.Option(min=1, help="Plans that are shown.")] = 10,
    jobs: Annotated[int, typer.Option(min=0, help="Processes; 0: one a core.")] = 0,
    seed: SeedOption = None,
    json: bool = JSON_OPTION,
    out: Annotated[Path | None, typer.Option(help="Write search.json, a page and pictures here.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite results in --out.")] = False,
) -> None:
    """Fastest layouts, microbatches, schedules and recomputation that fit; why all others are out."""
    from moesim.scenario.resolve import resolve  # noqa: PLC0415
    from moesim.scenario.train_layouts import layouts_view  # noqa: PLC0415
    from moesim.scenario.train_search import common_of, default_space, search_plans  # noqa: PLC0415

    resolved = resolve(scenario, overrides(sets, seed))
    common = common_of(resolved)
    texts = {"tp": tp, "cp": cp, "pp": pp, "vpp": vpp, "ep": ep, "etp": etp, "micro_batch": micro_batch}
    given: dict[str, Any] = {name: numbers(name, text) for name, text in texts.items() if text}
    if schedules:
        given["schedules"] = tuple(schedules.split(","))
    if recompute:
        given["recompute"] = tuple(policy(text) for text in recompute)
    space = replace(default_space(resolved.scenario, common), **given)
    refuse_overwriting(out, "search.json", force=force)
    processes = jobs or min(os.cpu_count() or 1, PROCESSES_MAX)
    with tallied("plans") as tell:
        tuned = search_plans(resolved.scenario, common, space, keep=keep, jobs=processes, progress=tell)
        layouts = layouts_view(resolved.scenario, common, tuned, tell) if out is not None else None
    document = document_of(resolved, common, tuned, layouts)
    if out is not None:
        note("wrote " + ", ".join(str(path) for path in written(document, out)))
    if json:
        emit_json(document)
        return
    show(document)


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Whole numbers of an option.

    Raises
    ------
    InputError
        Something else.
    """
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        option = f"--{name.replace('_', '-')}"
        raise InputError.at(option, text, "whole numbers >= 1 joined by commas, as 1,2,4")
    return found


def policy(text: str) -> Recompute:
    """Policy of an option."""
    from moesim.training.recompute import Recompute  # noqa: PLC0415

    if text in {"none", "full"}:
        return Recompute("full" if text == "full" else "none")
    return Recompute("selective", tuple(text.split(",")))


def document_of(
    resolved: Resolved, common: Common, tuned: Tuned, layouts: dict[str, Any] | None
) -> dict[str, Any]:
    """Best plans, the scenario's own beside them, and why the others are out."""
    from moesim.scenario.train_search import own_row, rows_of  # noqa: PLC0415

    scenario = resolved.scenario
    rows, own = rows_of(tuned, scenario, common), own_row(scenario, common)
    units = {
        "step_s": "s",
        "tokens_per_s_per_device": "tokens_per_s",
        "mfu_fraction": "fraction",
        "peak_bytes": "bytes",
    }
    return envelope(
        "train search",
        scenario=scenario.name,
        title=scenario.description or scenario.name,
        answer=_answer(rows[0], own, tuned, layouts),
        metrics={name: {"value": rows[0][name], "unit": unit} for name, unit in units.items()},
        counts={"plans": tuned.num_plans, "sized": tuned.num_sized, "timed": tuned.num_timed},
        left_out=tuned.left_out,
        rows=rows,
        own=own,
        layouts=layouts,
        warnings=list(common.windows.warnings),
    )


def _answer(
    best: dict[str, Any], own: dict[str, Any] | None, tuned: Tuned, layouts: dict[str, Any] | None
) -> str:
    degrees = ", ".join(f"{name} {best[name]}" for name in ("tp", "pp", "vpp", "ep"))
    text = (
        f"The fastest of {tuned.num_plans:,} plans ({degrees}, {best['schedule']}, "
        f"{best['micro_batch']} sequences a microbatch, recomputation {best['recompute']}) takes "
        f"{fmt_seconds(best['step_s'])} a step, MFU {fmt_quantity(best['mfu_fraction'], 'fraction')}"
    )
    if own is not None:
        text += f"; the scenario's own takes {fmt_seconds(own['step_s'])}"
    if layouts is not None:
        costs = [row["imbalance_cost_fraction"] for row in layouts["rows"]]
        first = next(row for row in layouts["rows"] if row["set"] == best["set"])
        text += (
            f". Uneven experts cost it {100 * first['imbalance_cost_fraction']:.1f} %, and "
            f"{100 * min(costs):.1f} to {100 * max(costs):.1f} % of the other layouts' steps"
        )
    return text + "."


def written(document: dict[str, Any], out: Path) -> list[Path]:
    """Files of a search in a folder."""
    from moesim.files import write_json  # noqa: PLC0415
    from moesim.report.layouts_page import write_layouts_figures, write_layouts_page  # noqa: PLC0415

    return [
        write_json(out / "search.json", document),
        write_layouts_page(document, out / "layouts.html"),
        *write_layouts_figures(document, out),
    ]


def show(document: dict[str, Any]) -> None:
    """Tables of a search."""
    rows, own, counts = document["rows"], document.get("own"), document["counts"]
    columns = ["tp", "cp", "dp", "pp", "vpp", "ep", "etp", "mb", "schedule", "recompute"]
    columns += ["peak", "step", "MFU", "tok/s each"]
    shown = [_cells(row) for row in rows]
    if own is not None:
        shown.append(_cells(own, label="as the scenario has it"))
    typer.echo(document["answer"])
    title = f"Fastest of {counts['plans']:,} plans"
    table(title, columns, shown, right=[*range(8), *range(10, 14)])
    left_out = [[f"{count:,}", why] for why, count in document["left_out"].items()]
    table("Left out", ["plans", "why"], left_out, right=[0])
    typer.echo(f"{counts['sized']:,} plans sized, {counts['timed']:,} timed. Run the fastest:")
    sets = " ".join(f"--set {one}" for one in rows[0]["set"])
    typer.echo(f"  moesim run {document['scenario']} {sets}")
    for warning in document["warnings"]:
        note(f"note: {warning}")


def _cells(row: dict[str, Any], label: str = "") -> list[str]:
    degrees = [str(row[name]) for name in ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "micro_batch")]
    recompute = f"{row['recompute']} ({label})" if label else str(row["recompute"])
    return [
        *degrees,
        row["schedule"],
        recompute,
        fmt_bytes(row["peak_bytes"]),
        fmt_seconds(row["step_s"]),
        fmt_quantity(row["mfu_fraction"], "fraction"),
        f"{row['tokens_per_s_per_device']:,.0f}",
    ]
