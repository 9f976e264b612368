"""The whole harness: order of the cases, the budget, the progress line."""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import attention, copies, dense, experts
from .cases import Case, interleaved
from .machine import cache_bytes, provenance
from .output import append, done, file_of
from .timing import measure

COPIES_MAX = 64
OUTGROW = 3.0
"""Copies together are this many times the cache, so that weights come from main memory."""


def all_cases(device: str, dtypes: list[str], families: list[str] | None, memory_bytes: float) -> list[Case]:
    """Every case of the asked families, most informative first, families in turn."""
    gpu = device.startswith("cuda")
    flops = 4e13 if gpu else 2e10
    size = min(memory_bytes / 8, 4e9 if gpu else 2.5e8)
    makers = {
        "launch": [dense.launch(device)],
        "gemm": [dense.gemm(device, dtypes, 400, flops)],
        "moe": [experts.experts(device, name, 200, size) for name in dtypes],
        "attention_prefill": [attention.prefill(device, name, 120, flops) for name in dtypes],
        "attention_decode": [attention.decode(device, name, 120, size) for name in dtypes],
        "router": [dense.router(device, name, 60) for name in dtypes],
        "elementwise": [dense.elementwise(device, name, 60) for name in dtypes],
        "copy": [copies.copies(device, 24, size)],
    }
    chosen = [
        maker for name, made in makers.items() if families is None or name in families for maker in made
    ]
    return interleaved(chosen)


def run(
    folder: Path,
    *,
    minutes: float,
    name: str,
    device: str = "cpu",
    dtypes: list[str] | None = None,
    families: list[str] | None = None,
    progress: Callable[[int, int, float, str], None] | None = None,
) -> list[Path]:
    """Measure until the budget is spent or nothing is left; files written to.

    Parameters
    ----------
    folder : Path
        Where the CSV files of this machine are; what they hold already is not measured again.
    minutes : float
        Budget. [min]
    name : str
        Name of the device's profile, for the record.
    device : str
        ``cpu`` or ``cuda``.
    dtypes : list of str, optional
        ``bf16``, ``fp16``, ``fp32``; what the device is good at by default.
    families : list of str, optional
        Only these.
    progress : callable, optional
        Called with cases done, cases left, minutes left, name of the family.
    """
    import torch

    gpu = device.startswith("cuda")
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else 8e9
    cases = all_cases(device, dtypes or (["bf16", "fp16"] if gpu else ["fp32", "bf16"]), families, memory)
    folder.mkdir(parents=True, exist_ok=True)
    known, facts, cache = done(folder), provenance(device, name), cache_bytes(device)
    todo = [case for case in cases if case.key not in known]
    deadline = time.monotonic() + 60 * minutes
    written: dict[Path, None] = {}
    torch.manual_seed(0)
    with torch.inference_mode():
        for number, case in enumerate(todo):
            left = deadline - time.monotonic()
            if left <= 0:
                break
            if progress is not None:
                progress(number, len(todo) - number, left / 60, case.family)
            wanted = math.ceil(OUTGROW * cache / max(case.working_bytes, 1.0))
            number_of_copies = max(1, min(COPIES_MAX, wanted)) if case.working_bytes else 1
            try:
                timing = measure(case.build(number_of_copies), device)
            except (RuntimeError, NotImplementedError):
                continue  # this build of torch has no such kernel, or the shape does not fit
            path = file_of(folder, facts["date"], case.family)
            append(path, case, timing, facts)
            written[path] = None
    return list(written)


def main(arguments: list[str] | None = None) -> None:
    """Command line of the copied folder."""
    import torch

    parser = argparse.ArgumentParser(prog="harness", description="Time operations on this machine.")
    parser.add_argument("--name", required=True, help="name of the device profile, for example h100_sxm")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--family", action="append", help="only this family; repeats")
    parser.add_argument("--dtype", action="append", help="bf16, fp16 or fp32; repeats")
    given = parser.parse_args(arguments)

    def line(count: int, left: int, minutes: float, family: str) -> None:
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{count} done, {left} left, {minutes:.1f} min  {family:<20}")
            sys.stderr.flush()

    written = run(
        given.out,
        minutes=given.minutes,
        name=given.name,
        device=given.device,
        dtypes=given.dtype,
        families=given.family,
        progress=line,
    )
    sys.stderr.write("\n" if sys.stderr.isatty() else "")
    sys.stdout.writelines(f"{path}\n" for path in written)
