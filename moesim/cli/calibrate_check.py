"""``moesim calibrate check``: predicted against measured on rows that no fit saw."""

from __future__ import annotations

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

SOURCES = ("recorded", "measurements", "aiconfigurator")


def check(
    device: Devices = None,
    against: Against = "recorded",
    kernels: Kernels = False,
    within: Within = None,
    json: bool = JSON_OPTION,
) -> None:
    """Predicted against measured on rows that no fit saw."""
    from moesim.hardware import load_device  # noqa: PLC0415
    from moesim.kernels.fit.check import checked_rows, plain, recorded_rows, summary  # noqa: PLC0415
    from moesim.kernels.fit_file import fitted_devices, load_fits  # noqa: PLC0415

    if against not in SOURCES:
        raise InputError.at("--against", against, ", ".join(SOURCES))
    rows = []
    for name in device or fitted_devices():
        fits = load_fits(name)
        if against == "recorded":
            rows += recorded_rows(fits)
            continue
        profile = load_device(fits.device)
        found = checked_rows(fits, _tables(against, profile), profile)
        if not found:
            note(f"{name}: no table of {against} is the one its fits were made from")
        rows += found
    groups = summary(rows)
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


def _show_summary(groups: list[dict[str, Any]]) -> None:
    columns = ["device", "family", "rows", "kernels", "error", "P90", "bias", "in band", "< 10 %", "< 15 %"]
    shown = [
        [g["device"], g["family"], g["split"], str(g["kernels"])]
        + [_percent(g[n]) for n in ("median_ape", "p90_ape")]
        + [f"{100 * g['bias']:+.1f} %"]
        + [_percent(g[n]) for n in ("coverage", "below_10_percent", "below_15_percent")]
        for g in groups
    ]
    table("Medians over kernels, on rows that no fit saw", columns, shown, right=list(range(3, 10)))


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
