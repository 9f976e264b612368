"""``moesim calibrate measure``: run the profiling harness on this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from moesim.errors import InputError, Problem


def measure(
    device: Annotated[str, typer.Argument(help="Name of this machine's device profile, for the record.")],
    minutes: Annotated[
        float, typer.Option(min=0.01, help="Time budget; spent on informative shapes first.")
    ] = 8.0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of CSV files; calibration/measurements/DEVICE by default.")
    ] = None,
    on: Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Only this family; repeats.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16, fp16, fp8 or int8_x_int8; repeats.")
    ] = None,
    model: Annotated[
        list[Path] | None, typer.Option(help="Model folder whose whole steps are timed instead; repeats.")
    ] = None,
) -> None:
    """Time operations (or whole models) here; what was measured before is not measured again."""
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        raise InputError(
            [Problem("torch", "not installed; accepted: pip install 'moesim[capture]'")]
        ) from None
    from moesim.hardware.load import load_device  # noqa: PLC0415
    from moesim.kernels.harness.command import bar, tell  # noqa: PLC0415
    from moesim.kernels.harness.models import measure_models  # noqa: PLC0415
    from moesim.kernels.harness.run import run  # noqa: PLC0415

    name = load_device(device).name
    folder = out or Path("calibration") / "measurements" / name
    where = on or ("cuda" if torch.cuda.is_available() else "cpu")
    if model:
        one = (dtype or ["fp32"])[0]
        written = measure_models(
            list(model), folder, name=name, device=where, dtype=one, families=family, progress=tell
        )
    else:
        try:
            written = run(
                folder,
                minutes=minutes,
                name=name,
                device=where,
                dtypes=dtype,
                families=family,
                progress=bar,
            )
        except ValueError as error:
            raise InputError([Problem("--family", str(error).removeprefix("family: "))]) from None
    if sys.stderr.isatty():
        typer.echo("", err=True)
    for path in written:
        typer.echo(str(path))
