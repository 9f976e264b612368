"""``moesim calibrate fit``: measured CSV files of a device to its file of fits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.calibrate_common import FITS, MEASUREMENTS, emit_fits, own_folder
from moesim.cli.output import JSON_OPTION, note
from moesim.errors import InputError

if TYPE_CHECKING:
    from moesim.hardware.schema import Node

Device = Annotated[str, typer.Argument(help="Name of the device profile that was measured.")]
From = Annotated[
    Path | None, typer.Option("--from", help=f"Folder of CSV files; {MEASUREMENTS}/DEVICE if left out.")
]
Out = Annotated[Path | None, typer.Option(help=f"File to write; {FITS}/DEVICE.yaml if left out.")]
Quick = Annotated[bool, typer.Option(help="Skip the fits that only count errors on other shapes.")]
Near = Annotated[
    str | None, typer.Option(help="Fitted device from whose parameters small tables are fitted.")
]


def fit(
    device: Device,
    source: From = None,
    out: Out = None,
    quick: Quick = False,
    near: Near = None,
    json: bool = JSON_OPTION,
) -> None:
    """Fit a device's measurements; write calibration/fits/DEVICE.yaml (collectives: calibration/network)."""
    from moesim.hardware import load_device  # noqa: PLC0415
    from moesim.kernels.fit.device import fit_device  # noqa: PLC0415
    from moesim.kernels.fit_file import load_fits, write_fits  # noqa: PLC0415
    from moesim.kernels.measured import read_folder  # noqa: PLC0415
    from moesim.network.fit.device import COLLECTIVES, fit_measured  # noqa: PLC0415
    from moesim.network.fit_file import ROOM as NETWORK  # noqa: PLC0415
    from moesim.network.fit_file import write_network_fits  # noqa: PLC0415

    profile = load_device(device)
    tables = read_folder(source or own_folder(MEASUREMENTS) / profile.name)
    known = load_fits(near) if near else None
    fits = fit_device(tables, profile, side_fits=not quick, near=known, note=note)
    path = write_fits(out or own_folder(FITS) / f"{profile.name}.yaml", fits)
    if not any(table.family in COLLECTIVES for table in tables):
        emit_fits("calibrate fit", fits, path, json=json)
        return
    network = fit_measured(tables, _node_of(profile.name))
    if network is not None:
        beside = out.with_name(f"{out.stem}_network.yaml") if out else own_folder(NETWORK) / path.name
        note(f"wrote {write_network_fits(beside, network)}")
    emit_fits("calibrate fit", fits, path, json=json)


def _node_of(device: str) -> Node:
    """First node profile of the device: whose links its collectives were measured over."""
    from moesim.hardware import load_node, profile_names  # noqa: PLC0415
    from moesim.hardware.load import read_profile  # noqa: PLC0415

    for name in profile_names():
        profile = read_profile(name)
        described = profile.tree.data.get("device") if profile.kind == "node" else None
        if isinstance(described, dict) and described.get("name") == device:
            return load_node(name)
    raise InputError.at("DEVICE", device, "one with a node profile, for its collectives were measured")
