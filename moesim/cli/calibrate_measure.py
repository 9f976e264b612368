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
    dtype: Annotated[list[str] | None, typer.Option(help="bf16, fp16 or fp32; repeats.")] = None,
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
    from moesim.kernels.harness.models import measure_models  # noqa: PLC0415
    from moesim.kernels.harness.output import file_of  # noqa: PLC0415
    from moesim.kernels.harness.run import run  # noqa: PLC0415

    name = load_device(device).name
    folder = out or Path("calibration") / "measurements" / name
    where = on or ("cuda" if torch.cuda.is_available() else "cpu")
    if model:
        from moesim.kernels.harness.machine import provenance  # noqa: PLC0415

        path = file_of(folder, provenance(where, name)["date"], "step")
        written = [measure_models(list(model), path, name=name, device=where, progress=_tell)]
    else:
        written = run(
            folder,
            minutes=minutes,
            name=name,
            device=where,
            dtypes=dtype,
            families=family,
            progress=_progress,
        )
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    for path in written:
        typer.echo(str(path))


def _progress(done: int, left: int, minutes: float, family: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done} done, {left} left, {minutes:.1f} min  {family:<20}")
        sys.stderr.flush()


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<60}")
        sys.stderr.flush()
