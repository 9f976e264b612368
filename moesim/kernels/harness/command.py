"""Command line of the copied folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .models import measure_models
from .run import run

BAR = 24


def main(arguments: list[str] | None = None) -> None:
    """Parse, measure, print the files written."""
    import torch

    parser = argparse.ArgumentParser(prog="harness", description="Time operations on this machine.")
    parser.add_argument("--name", required=True, help="name of the device profile, for example h100_sxm")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--family", action="append", help="only this family; repeats")
    parser.add_argument("--dtype", action="append", help="fp32, bf16, fp16, fp8 or int8_x_int8; repeats")
    parser.add_argument(
        "--model", action="append", type=Path, help="time whole steps of this model folder instead; repeats"
    )
    given = parser.parse_args(arguments)
    if given.model:
        written = measure_models(
            given.model,
            given.out,
            name=given.name,
            device=given.device,
            dtype=(given.dtype or ["fp32"])[0],
            families=given.family,
            progress=tell,
        )
    else:
        try:
            written = run(
                given.out,
                minutes=given.minutes,
                name=given.name,
                device=given.device,
                dtypes=given.dtype,
                families=given.family,
                progress=bar,
            )
        except ValueError as error:
            parser.error(str(error))
    sys.stderr.write("\n" if sys.stderr.isatty() else "")
    sys.stdout.writelines(f"{path}\n" for path in written)


def bar(done: int, left: int, minutes: float, family: str) -> None:
    """Progress on a terminal; nothing elsewhere."""
    filled = round(BAR * done / max(1, done + left))
    tell(f"[{'#' * filled:<{BAR}}] {done} done, {left} left, {minutes:.1f} min  {family}")


def tell(text: str) -> None:
    """One line on a terminal, over the last one."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{text:<78}")
        sys.stderr.flush()
