"""``moesim calibrate check``: predicted against measured on rows that no fit saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.calibrate_common import MEASUREMENTS, own_folder
from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.errors import CheckFailed, InputError

if TYPE_CHECKING:
    from moesim.hardware.schema import Device as Profile
    from moesim.kernels.measured import MeasuredTable

Devices = Annotated[list[str] | None, typer.Argument(help="Devices with fits; all if left out.")]
Against = Annotated[
    str,
    typer.Option(
        help="recorded: errors counted when the fits were made; measurements: this machine's CSV files; "
        "aiconfigurator: the installed package."
    ),
]
Within = Annotated[
    float | None, typer.Option(help="Exit code 5 if a family's held-out median error is above this fraction.")
]
Kernels = Annotated[bool, typer.Option("--kernels", help="A line for each kernel and regime.")]

LookUp = Annotated[
    bool,
    typer.Option(
        "--look-up",
        help="Look up the rows that a fit was made from beside it; needs --against one that has rows.",
    ),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="Folder for calibration.html and a picture of each family.")
]

SOURCES = ("recorded", "measurements", "aiconfigurator")


def check(
    device: Devices = None,
    against: Against = "recorded",
    kernels: Kernels = False,
    within: Within = None,
    look_up: LookUp = False,
    out: Out = None,
    json: bool = JSON_OPTION,
) -> None:
    """Predicted against measured on rows that no fit saw."""
    from moesim.hardware import load_device  # noqa: PLC0415
    from moesim.kernels.fit.check import (  # noqa: PLC0415
        checked_points,
        checked_rows,
        looked_up_rows,
        plain,
        recorded_rows,
        summary,
    )
    from moesim.kernels.fit_file import fitted_devices, load_fits  # noqa: PLC0415

    if against not in SOURCES:
        raise InputError.at("--against", against, ", ".join(SOURCES))
    if look_up and against == "recorded":
        raise InputError.at("--look-up", against, "with --against aiconfigurator or measurements")
    rows = []
    parts: dict[str, list[dict[str, Any]]] = {}
    for name in device or fitted_devices():
        fits = load_fits(name)
        if against == "recorded":
            rows += recorded_rows(fits)
            continue
        profile = load_device(fits.device)
        tables = _tables(against, profile)
        found = (looked_up_rows if look_up else checked_rows)(fits, tables, profile)
        for family, points in checked_points(fits, tables, profile).items() if out else ():
            parts.setdefault(family, []).append({"device": name, **points._asdict()})
        if not found:
            note(f"{name}: no table of {against} is the one its fits were made from")
        rows += found
    groups = summary(rows)
    if out is not None:
        note(f"wrote {_page(out, plain(rows), groups, parts)}")
    if json:
        emit_json(envelope("calibrate check", rows=plain(rows), summary=groups))
    else:
        _show_summary(groups)
        if kernels:
            _show_kernels(plain(rows))
    missed = [
        g for g in groups if within is not None and g["split"] == "held out" and g["median_ape"] > within
    ]
    if missed:
        names = (f"{g['device']} {g['family']} {_percent(g['median_ape'])}" for g in missed)
        message = f"held-out median error above {_percent(within or 0.0)}: {'; '.join(names)}"
        raise CheckFailed(message)


def _tables(against: str, profile: Profile) -> list[MeasuredTable]:
    if against == "aiconfigurator":
        from moesim.kernels.aiconfigurator import read_tables  # noqa: PLC0415

        return read_tables(profile.name)
    from moesim.kernels.measured import read_folder  # noqa: PLC0415

    return read_folder(own_folder(MEASUREMENTS) / profile.name)


COLUMNS = ("device", "family", "rows", "kernels", "error", "P90", "bias", "in band", "< 10 %", "< 15 %")


def _show_summary(groups: list[dict[str, Any]]) -> None:
    table("Medians over kernels, on rows that no fit saw", COLUMNS, _cells(groups), right=list(range(3, 10)))


def _cells(groups: list[dict[str, Any]]) -> list[list[str]]:
    return [
        [g["device"], g["family"], g["split"], str(g["kernels"])]
        + [_percent(g[n]) for n in ("median_ape", "p90_ape")]
        + [f"{100 * g['bias']:+.1f} %"]
        + [_percent(g[n]) for n in ("coverage", "below_10_percent", "below_15_percent")]
        for g in groups
    ]


def _page(
    out: Path,
    rows: list[dict[str, Any]],
    groups: list[dict[str, Any]],
    parts: dict[str, list[dict[str, Any]]],
) -> Path:
    """``calibration.html`` and a PNG of each picture."""
    from moesim.report.calibration_figures import errors, points  # noqa: PLC0415
    from moesim.report.plain_page import Section, write_plain_page  # noqa: PLC0415
    from moesim.report.style import save_png  # noqa: PLC0415

    shown = [row for row in rows if row["regime"] == "all" and row["split"] in {"held out", "all rows"}]
    figures = {"errors": errors(shown)} | {family: points(family, own) for family, own in parts.items()}
    for name, figure in figures.items():
        if figure is not None:
            save_png(figure, out / f"calibration_{name}.png")
    text = (
        "Every fitted kernel was tested on measured rows that its parameters did not see: random rows, "
        "whole weight or head shapes, and the largest shapes after fitting the smaller ones."
    )
    sections = [Section(text=text, figure=figures.pop("errors"))]
    sections += [Section(figure=figure) for figure in figures.values()]
    sections.append(Section("Medians over kernels", "", None, COLUMNS, _cells(groups), range(3, 10)))
    return write_plain_page(out / "calibration.html", "Calibration: predicted against measured", sections)


def _show_kernels(rows: list[dict[str, Any]]) -> None:
    columns = ["device", "family", "dtype", "source", "variant", "regime", "rows"]
    shown = [
        [row[n] for n in ("device", "family", "dtype", "source", "variant", "regime", "split")]
        + [f"{row['n']:,}", _percent(row["median_ape"]), _percent(row["p90_ape"])]
        + [f"{100 * row['bias']:+.1f} %", _percent(row["coverage"])]
        for row in rows
    ]
    table("Kernels", [*columns, "n", "error", "P90", "bias", "in band"], shown, right=[7, 8, 9, 10, 11])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
