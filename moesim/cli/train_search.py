"""``moesim train search``: the fastest plans of a training scenario that fit its machine."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.cli.progress import tallied
from moesim.cli.run import ScenarioArgument, SeedOption, SetOption, overrides
from moesim.errors import InputError
from moesim.units import fmt_bytes, fmt_quantity, fmt_seconds

if TYPE_CHECKING:
    from moesim.scenario.resolve import Resolved
    from moesim.scenario.training import Common
    from moesim.training.recompute import Recompute
    from moesim.training.tuning import Space, Tuned

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
) -> None:
    """Fastest layouts, microbatches, schedules and recomputation that fit; why all others are out."""
    from moesim.scenario.resolve import resolve  # noqa: PLC0415
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
    processes = jobs or min(os.cpu_count() or 1, PROCESSES_MAX)
    with tallied("plans") as tell:
        tuned = search_plans(resolved.scenario, common, space, keep=keep, jobs=processes, progress=tell)
    show(resolved, common, space, tuned, json=json)


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


def show(resolved: Resolved, common: Common, space: Space, tuned: Tuned, *, json: bool) -> None:
    """The best plans, the scenario's own beside them, and why the others are out."""
    from moesim.scenario.train_search import own_row, rows_of  # noqa: PLC0415

    rows = rows_of(tuned, resolved.scenario, common)
    own = own_row(resolved.scenario, common)
    counts = {
        "plans": tuned.num_plans,
        "sized": tuned.num_sized,
        "timed": tuned.num_timed,
    }
    if json:
        best = rows[0]
        metrics = {
            "step_s": {"value": best["step_s"], "unit": "s"},
            "tokens_per_s_per_device": {"value": best["tokens_per_s_per_device"], "unit": "tokens_per_s"},
            "mfu_fraction": {"value": best["mfu_fraction"], "unit": "fraction"},
            "peak_bytes": {"value": best["peak_bytes"], "unit": "bytes"},
        }
        emit_json(
            envelope(
                "train search",
                scenario=resolved.scenario.name,
                metrics=metrics,
                counts=counts,
                left_out=tuned.left_out,
                rows=rows,
                own=own,
            )
        )
        return
    columns = ["tp", "cp", "dp", "pp", "vpp", "ep", "etp", "mb", "schedule", "recompute"]
    columns += ["peak", "step", "MFU", "tok/s each"]
    shown = [_cells(row) for row in rows]
    if own is not None:
        shown.append(_cells(own, label="as the scenario has it"))
    right = [*range(8), *range(10, 14)]
    title = f"{resolved.scenario.name}: fastest of {tuned.num_plans:,} plans on {space.num_devices} devices"
    table(title, columns, shown, right=right)
    table("Left out", ["plans", "why"], [[f"{n:,}", why] for why, n in tuned.left_out.items()], right=[0])
    typer.echo(f"{tuned.num_sized:,} plans sized, {tuned.num_timed:,} timed. Run the fastest:")
    sets = " ".join(f"--set {one}" for one in rows[0]["set"])
    typer.echo(f"  moesim run {resolved.scenario.name} {sets}")


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
