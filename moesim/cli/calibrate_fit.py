"""``moesim calibrate fit``: measured CSV files of a device to its file of fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.calibrate_common import FITS, MEASUREMENTS, emit_fits, own_folder
from moesim.cli.output import JSON_OPTION, note

Device = Annotated[str, typer.Argument(help="Name of the device profile that was measured.")]
From = Annotated[
    Path | None, typer.Option("--from", help=f"Folder of CSV files; {MEASUREMENTS}/DEVICE if left out.")
]
Out = Annotated[Path | None, typer.Option(help=f"File to write; {FITS}/DEVICE.yaml if left out.")]
Quick = Annotated[bool, typer.Option(help="Skip the fits that only count errors on other shapes.")]


def fit(
    device: Device, source: From = None, out: Out = None, quick: Quick = False, json: bool = JSON_OPTION
) -> None:
    """Fit a device's measurements; write calibration/fits/DEVICE.yaml."""
    from moesim.hardware import load_device  # noqa: PLC0415
    from moesim.kernels.fit.device import fit_device  # noqa: PLC0415
    from moesim.kernels.fit_file import write_fits  # noqa: PLC0415
    from moesim.kernels.measured import read_folder  # noqa: PLC0415

    profile = load_device(device)
    tables = read_folder(source or own_folder(MEASUREMENTS) / profile.name)
    fits = fit_device(tables, profile, side_fits=not quick, note=note)
    path = write_fits(out or own_folder(FITS) / f"{profile.name}.yaml", fits)
    emit_fits("calibrate fit", fits, path, json=json)
