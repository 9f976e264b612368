"""``moesim calibrate import``: public measured tables to files of fits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from moesim.cli.calibrate_common import FITS, emit_fits, own_folder
from moesim.cli.output import JSON_OPTION, note
from moesim.errors import InputError

Source = Annotated[str, typer.Argument(help="Package that holds the tables: aiconfigurator.")]
Devices = Annotated[
    list[str] | None, typer.Option("--device", help="Only this device profile; repeats. All if left out.")
]
Families = Annotated[list[str] | None, typer.Option("--family", help="Only this family; repeats.")]
Out = Annotated[Path | None, typer.Option(help=f"Folder to write to; {FITS} if left out.")]
Quick = Annotated[bool, typer.Option(help="Skip the fits that only count errors on other shapes.")]


def import_tables(
    source: Source,
    device: Devices = None,
    family: Families = None,
    out: Out = None,
    quick: Quick = False,
    json: bool = JSON_OPTION,
) -> None:
    """Fit public measured tables of GPUs (needs the tables extra)."""
    from moesim.hardware import load_device  # noqa: PLC0415
    from moesim.kernels.aiconfigurator import SYSTEMS, read_tables  # noqa: PLC0415
    from moesim.kernels.fit.device import fit_device  # noqa: PLC0415
    from moesim.kernels.fit_file import write_fits  # noqa: PLC0415
    from moesim.kernels.measured import feature_columns  # noqa: PLC0415

    if source != "aiconfigurator":
        raise InputError.at("source", source, "aiconfigurator")
    for name in family or ():
        feature_columns(name)
    folder = out or own_folder(FITS)
    for name in device or SYSTEMS:
        tables = read_tables(name, tuple(family or ()))
        fits = fit_device(tables, load_device(name), side_fits=not quick, note=note)
        emit_fits("calibrate import", fits, write_fits(folder / f"{name}.yaml", fits), json=json)
