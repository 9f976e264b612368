"""What every benchmark shares: CPU seconds, rows of figures, and how they are shown."""

import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple


class Row(NamedTuple):
    """A figure, its unit, and the least it should be (None: no target)."""

    name: str
    value: float
    unit: str
    target: float | None = None


def cpu_s(work: Callable[[], object], *, repeats: int = 5, loops: int = 1) -> float:
    """Median CPU seconds of one call of ``work`` over ``repeats`` measurements of ``loops`` calls each."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(loops):
            work()
        taken.append((time.process_time() - start) / loops)
    return statistics.median(taken)


def interpreter() -> str:
    """Interpreter version and whether it was built with profile-guided optimisation, worth 1.35 - 1.5x."""
    arguments = sysconfig.get_config_var("CONFIG_ARGS") or ""
    build = "optimised build" if "--enable-optimizations" in arguments else "plain build"
    return f"{sys.implementation.name} {sys.version.split()[0]} ({build})"


def show(title: str, rows: Iterable[Row]) -> None:
    """Print a table of figures with their targets."""
    print(f"{title}: {interpreter()}, CPU seconds, medians of 5")
    for row in rows:
        target = "" if row.target is None else f"  target >= {row.target:,.0f}"
        missed = "" if row.target is None or row.value >= row.target else "  MISSED"
        print(f"  {row.name:<58} {row.value:>12,.0f} {row.unit}{target}{missed}")
