"""CSV files of measurements: provenance on top, one row a case, only ever appended to.

A row is one write of one line: a run that is killed leaves whole rows, at worst a last line that was
cut short, which the next run removes before it goes on.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from .cases import Case
from .timing import Timing

SCHEMA_VERSION = 1
FAMILIES: dict[str, tuple[str, ...]] = {
    "launch": ("num_kernels",),
    "gemm": ("rows", "n", "k", "count"),
    "moe": (
        *("tokens", "hidden", "width", "num_experts_local", "top_k", "gated"),
        *("touched", "rows", "padded_16", "padded_32", "padded_64", "padded_128", "all_rows"),
    ),
    "attention_prefill": (
        *("num_sequences", "query_tokens", "context_tokens"),
        *("num_heads", "num_kv_heads", "qk_dim", "v_dim", "window"),
    ),
    "attention_decode": (
        *("num_sequences", "context_tokens"),
        *("num_heads", "num_kv_heads", "qk_dim", "v_dim", "window"),
    ),
    "mla_prefill": (
        *("num_sequences", "query_tokens", "context_tokens"),
        *("num_heads", "num_kv_heads", "qk_dim", "v_dim", "window"),
    ),
    "mla_decode": (
        *("num_sequences", "context_tokens"),
        *("num_heads", "num_kv_heads", "qk_dim", "v_dim", "window"),
    ),
    "router": ("tokens", "hidden", "num_experts", "top_k"),
    "elementwise": ("moved_bytes",),
    "copy": ("direction", "bytes", "pinned"),
    "all_reduce": ("num_ranks", "payload_bytes"),
    "all_gather": ("num_ranks", "payload_bytes"),
    "reduce_scatter": ("num_ranks", "payload_bytes"),
    "all_to_all": ("num_ranks", "payload_bytes"),
    "layer": ("model", "phase", "num_sequences", "query_tokens", "context_tokens"),
    "step": ("model", "phase", "num_sequences", "query_tokens", "context_tokens", "expert_tokens"),
}
"""Feature columns of each family, as the readers of these files know them."""
WORDS = frozenset({"direction", "model", "phase", "expert_tokens"})
OBSERVED = frozenset({"expert_tokens"})
"""Columns that are no part of a case's key: what was found when it was measured."""
KEYS = ("source", "dtype")
TIMES = ("seconds", "spread_fraction", "repeats")


def file_of(folder: Path, date: str, family: str) -> Path:
    """File of one family and day."""
    return folder / f"{date}-{family}.csv"


def done(folder: Path) -> set[tuple[str, ...]]:
    """Keys of all cases measured before, in any file of the folder."""
    keys: set[tuple[str, ...]] = set()
    for path in sorted(folder.glob("*.csv")):
        lines = path.read_text(encoding="utf-8").splitlines()
        family = next((line[10:].strip() for line in lines if line.startswith("# family:")), "")
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            names = sorted(set(row) - {*KEYS, *TIMES})
            if family not in FAMILIES or set(names) != set(FAMILIES[family]) or None in row.values():
                continue  # another program's file, or a line cut short
            names = [name for name in names if name not in OBSERVED]
            words = tuple(f"{name}={row[name]}" for name in names if name in WORDS)
            numbers = tuple(f"{name}={float(row[name]):g}" for name in names if name not in WORDS)
            keys.add((family, row["source"], row["dtype"], *words, *numbers))
    return keys


def mend(path: Path) -> None:
    """Take away a last line that was cut short by a killed run."""
    text = path.read_bytes()
    if text and not text.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(text.rfind(b"\n") + 1)


def start(path: Path, family: str, facts: dict[str, str]) -> None:
    """New file with its provenance and column names; an existing one is only mended."""
    if path.exists() and path.stat().st_size:
        mend(path)
        return
    head = {"schema_version": str(SCHEMA_VERSION), "family": family} | facts
    with path.open("w", newline="", encoding="utf-8") as file:
        file.writelines(f"# {name}: {' '.join(str(value).split())}\n" for name, value in head.items())
        csv.writer(file, lineterminator="\n").writerow([*KEYS, *FAMILIES[family], *TIMES])


def append(path: Path, case: Case, timing: Timing, facts: dict[str, str]) -> None:
    """Add the row of one case."""
    start(path, case.family, facts)
    values = [
        case.labels[name] if name in WORDS else number(case.features[name]) for name in FAMILIES[case.family]
    ]
    add_row(path, [case.source, case.dtype, *values], timing)


def add_row(path: Path, values: Iterable[str], timing: Timing) -> None:
    """Add one row of text values and their time, in one write."""
    times = [f"{timing.seconds:.6g}", f"{timing.spread_fraction:.3g}", str(timing.repeats)]
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow([*values, *times])


def number(value: float) -> str:
    """Number without digits it does not have."""
    return str(int(value)) if float(value).is_integer() else f"{value:.9g}"
