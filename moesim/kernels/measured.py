"""Raw measurements: tables of kernel times, the CSV files that hold them, one schema a family.

A file ``calibration/measurements/<device>/<date>-<family>.csv`` begins with provenance lines
``# key: value``, then a heading and one row a measured shape. Files are only ever appended to: what
was once measured stays. Nothing here knows how a time was taken or what is fitted to it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem, did_you_mean
from moesim.kernels.histogram import TILE_ROWS

SCHEMA_VERSION = 1
REQUIRED_KEYS = ("schema_version", "family", "device", "date")

_ATTENTION = ("num_heads", "num_kv_heads", "qk_dim", "v_dim", "window")
_PREFILL = ("num_sequences", "query_tokens", "context_tokens", *_ATTENTION)
_DECODE = ("num_sequences", "context_tokens", *_ATTENTION)
_COLLECTIVE = ("num_ranks", "payload_bytes")
_WHOLE = ("model", "phase", "num_sequences", "query_tokens", "context_tokens")

FAMILIES: dict[str, tuple[str, ...]] = {
    "gemm": ("rows", "n", "k", "count"),
    "moe": (
        *("tokens", "hidden", "width", "num_experts_local", "top_k", "gated"),
        *("touched", "rows", *(f"padded_{tile}" for tile in TILE_ROWS), "all_rows"),
    ),
    "attention_prefill": _PREFILL,
    "attention_decode": _DECODE,
    "mla_prefill": _PREFILL,
    "mla_decode": _DECODE,
    "router": ("tokens", "hidden", "num_experts", "top_k"),
    "elementwise": ("moved_bytes",),
    "copy": ("direction", "bytes", "pinned"),
    "launch": ("num_kernels",),
    "all_reduce": _COLLECTIVE,
    "all_gather": _COLLECTIVE,
    "reduce_scatter": _COLLECTIVE,
    "all_to_all": _COLLECTIVE,
    "layer": _WHOLE,
    "step": (*_WHOLE, "expert_tokens"),
}
"""Feature columns of each family; shapes are those that one rank computes.

``rows, n, k, count`` as in :class:`~moesim.model.ops.Gemm`. ``moe``: ``tokens`` and ``all_rows``
(token-expert pairs) count those of the whole expert-parallel group, ``touched``, ``rows`` and
``padded_B`` (rows after padding each expert to whole tiles of B) only those of the local experts;
``width`` is the local inner width, ``gated`` 0 or 1. Attention: ``context_tokens`` are cached before
the step; ``window`` is 0 without one; absorbed MLA decode has one key/value head. ``router`` includes
the choice of experts. ``copy``: ``direction`` of ``h2d``, ``d2h``, ``d2d``, ``host`` or ``ssd``.
``layer`` and ``step`` are whole-model times: compared with predictions, never fitted; ``expert_tokens``
are the tokens that each expert got, ``5 0 3|2 2 4`` for two layers of three experts.
"""

IN_EXPERT_ORDER = frozenset({"torch_grouped_mm"})
"""Sources of family ``moe`` timed on rows that are in expert order already; all others gather the rows
and add the results up themselves, as the fused kernels of engines and the loops of libraries do."""

TEXT_COLUMNS = frozenset({"source", "dtype", "direction", "model", "phase", "expert_tokens"})
KEY_COLUMNS = ("source", "dtype")
TIME_COLUMNS = ("seconds", "spread_fraction", "repeats")

Column: TypeAlias = NDArray[Any]


@dataclass(frozen=True)
class MeasuredTable:
    """Times of one kernel on one device.

    Attributes
    ----------
    family : str
        A key of :data:`FAMILIES`.
    device : str
        Name of the device profile.
    source : str
        What ran: ``cublas``, ``torch_cpu``, ``vllm_triton`` ...
    dtype : str
        Format of the weights; of attention, of queries and cache: ``bf16``, ``bf16_kv_fp8``.
    columns : mapping of str to ndarray, ``(num_rows,)``
        The family's feature columns.
    seconds : ndarray, ``(num_rows,)``
        Median time of a call. [s]
    spread_fraction : ndarray, ``(num_rows,)``
        Distance of the 10 % and 90 % quantiles over the median; NaN where unknown. [-]
    repeats : ndarray, ``(num_rows,)``
        Timed calls; 0 where unknown. [-]
    provenance : mapping
        ``key: value`` lines of the file: device, driver, torch, date, clocks, command ...
    """

    family: str
    device: str
    source: str
    dtype: str
    columns: Mapping[str, Column]
    seconds: NDArray[np.float64]
    spread_fraction: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    repeats: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wanted = feature_columns(self.family)
        rows = len(self.seconds)
        if set(self.columns) != set(wanted):
            got = ", ".join(self.columns)
            raise InputError.at("columns", got, ", ".join(wanted), where=self.name)
        if len(self.spread_fraction) == 0:
            object.__setattr__(self, "spread_fraction", np.full(rows, np.nan))
        if len(self.repeats) == 0:
            object.__setattr__(self, "repeats", np.zeros(rows))
        lengths = {name: len(column) for name, column in self.columns.items()}
        lengths |= {"spread_fraction": len(self.spread_fraction), "repeats": len(self.repeats)}
        if set(lengths.values()) - {rows}:
            raise InputError.at("columns", lengths, f"{rows} rows each, as seconds has")

    @property
    def num_rows(self) -> int:
        """Measured shapes."""
        return len(self.seconds)

    @property
    def name(self) -> str:
        """``device/family/source/dtype``."""
        return f"{self.device}/{self.family}/{self.source}/{self.dtype}"

    def at(self, index: NDArray[Any]) -> MeasuredTable:
        """Only the rows chosen by an index or mask."""
        return replace(
            self,
            columns={name: column[index] for name, column in self.columns.items()},
            **{name: getattr(self, name)[index] for name in TIME_COLUMNS},
        )


def feature_columns(family: str) -> tuple[str, ...]:
    """Feature columns of a family.

    Raises
    ------
    InputError
        Unknown family.
    """
    if family not in FAMILIES:
        hint = did_you_mean(family, FAMILIES)
        raise InputError.at("family", family, f"one of {', '.join(FAMILIES)}{hint}")
    return FAMILIES[family]


def joined(tables: Iterable[MeasuredTable]) -> list[MeasuredTable]:
    """Tables of the same kernel put together; the first one's provenance stays."""
    groups: dict[str, list[MeasuredTable]] = {}
    for table in tables:
        groups.setdefault(table.name, []).append(table)
    return [_stacked(group) for group in groups.values()]


def _stacked(group: list[MeasuredTable]) -> MeasuredTable:
    first = group[0]
    return replace(
        first,
        columns={name: np.concatenate([t.columns[name] for t in group]) for name in first.columns},
        seconds=np.concatenate([t.seconds for t in group]),
        spread_fraction=np.concatenate([t.spread_fraction for t in group]),
        repeats=np.concatenate([t.repeats for t in group]),
    )


def append_csv(path: Path, table: MeasuredTable) -> None:
    """Add the rows of ``table`` to a file, which is begun with the table's provenance if it is new.

    Raises
    ------
    InputError
        The file holds another family, device or schema, or was cut short.
    """
    heading = [*KEY_COLUMNS, *feature_columns(table.family), *TIME_COLUMNS]
    try:
        if path.exists() and path.stat().st_size > 0:
            begun, _, _ = _head(path, path.read_text(encoding="utf-8"))
            for key, value in (("family", table.family), ("device", table.device)):
                if begun[key] != value:
                    raise InputError.at(key, value, f"{begun[key]}, which this file holds", where=str(path))
            lines = []
        else:
            own = {"schema_version": str(SCHEMA_VERSION), "family": table.family, "device": table.device}
            header = own | {k: v for k, v in table.provenance.items() if k not in own}
            missing = [key for key in REQUIRED_KEYS if key not in header]
            if missing:
                raise InputError.at("provenance", ", ".join(header), f"also {', '.join(missing)}")
            lines = [f"# {key}: {' '.join(str(value).split())}\n" for key, value in header.items()]
            lines.append(",".join(heading) + "\n")
            path.parent.mkdir(parents=True, exist_ok=True)
        features = [table.columns[name] for name in feature_columns(table.family)]
        for *cells, seconds, spread, repeats in zip(
            *features, *(getattr(table, n) for n in TIME_COLUMNS), strict=True
        ):
            shown = [table.source, table.dtype, *(_cell(cell) for cell in cells)]
            lines.append(",".join([*shown, f"{seconds:.6g}", f"{spread:.3g}", f"{repeats:.0f}"]) + "\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(lines))
    except OSError as error:
        raise InputError([Problem("", f"cannot write: {error}", str(path))]) from None


def _cell(value: Any) -> str:
    return str(value) if isinstance(value, str) else f"{value:.10g}"


def read_csv(path: Path) -> list[MeasuredTable]:
    """Tables of one measurement file, one for each kernel source and datatype in it.

    Raises
    ------
    InputError
        Not such a file, another schema, or broken rows: all problems with their lines.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("", f"cannot read: {error}", str(path))]) from None
    provenance, heading, body = _head(path, text)
    problems: list[Problem] = []
    groups: dict[tuple[str, str], list[list[Any]]] = {}
    for number, cells in body:
        parsed = _parsed(cells, heading, f"{path}:{number}", problems)
        if parsed is not None:
            groups.setdefault((str(parsed[0]), str(parsed[1])), []).append(parsed[2:])
    if problems:
        shown = problems[:20]
        if len(problems) > len(shown):
            shown.append(Problem("", f"and {len(problems) - len(shown)} more", str(path)))
        raise InputError(shown, source=str(path))
    tables = []
    for (source, dtype), rows in groups.items():
        columns = dict(zip(heading[2:], map(np.array, zip(*rows, strict=True)), strict=True))
        times = {name: columns.pop(name) for name in TIME_COLUMNS}
        family, device = provenance["family"], provenance["device"]
        tables.append(MeasuredTable(family, device, source, dtype, columns, **times, provenance=provenance))
    return tables


def read_folder(folder: Path) -> list[MeasuredTable]:
    """All tables of ``*.csv`` in a folder, those of the same kernel put together.

    Raises
    ------
    InputError
        No such folder, no file in it, or a broken file.
    """
    files = sorted(folder.glob("*.csv")) if folder.is_dir() else []
    if not files:
        problem = Problem(
            "", "no measurement (*.csv) here; `moesim calibrate measure` makes some", str(folder)
        )
        raise InputError([problem])
    return joined(table for path in files for table in read_csv(path))


def _head(path: Path, text: str) -> tuple[dict[str, str], list[str], Iterator[tuple[int, list[str]]]]:
    """Provenance, heading, and numbered cells of the rows that follow."""
    lines = text.splitlines()
    provenance: dict[str, str] = {}
    start = 0
    while start < len(lines) and lines[start].startswith("#"):
        key, colon, value = lines[start].removeprefix("#").partition(":")
        if not colon:
            raise InputError([Problem("", "expected '# key: value'", f"{path}:{start + 1}")])
        provenance[key.strip()] = value.strip()
        start += 1
    missing = [key for key in REQUIRED_KEYS if key not in provenance]
    if missing:
        message = f"not a moesim measurement: no '# {missing[0]}: ...' line before the heading"
        raise InputError([Problem("", message, f"{path}:{start + 1}")])
    if provenance["schema_version"] != str(SCHEMA_VERSION):
        got = provenance["schema_version"]
        raise InputError.at("schema_version", got, str(SCHEMA_VERSION), where=str(path))
    if provenance["family"] not in FAMILIES:
        hint = did_you_mean(provenance["family"], FAMILIES)
        accepted = f"one of {', '.join(FAMILIES)}{hint}"
        raise InputError.at("family", provenance["family"], accepted, where=str(path))
    heading = lines[start].split(",") if start < len(lines) else []
    wanted = [*KEY_COLUMNS, *FAMILIES[provenance["family"]], *TIME_COLUMNS]
    if heading != wanted:
        raise InputError.at("heading", ",".join(heading), ",".join(wanted), where=f"{path}:{start + 1}")
    if not text.endswith("\n"):
        message = "the last line was cut short; delete it"
        raise InputError([Problem("", message, f"{path}:{len(lines)}")])
    numbered = enumerate(csv.reader(lines[start + 1 :]), start + 2)
    return provenance, heading, ((number, cells) for number, cells in numbered if cells)


def _parsed(
    cells: list[str], heading: list[str], where: str, problems: list[Problem]
) -> list[str | float] | None:
    """Values of one row, or None after its problems were noted."""
    if len(cells) != len(heading):
        problems.append(Problem("", f"{len(cells)} cells; accepted: {len(heading)}", where))
        return None
    before = len(problems)
    row: list[str | float] = []
    for name, cell in zip(heading, cells, strict=True):
        if name in TEXT_COLUMNS:
            row.append(cell)
            continue
        try:
            value = float(cell)
        except ValueError:
            problems.append(Problem(name, f"got {cell!r}; accepted: a number", where))
            continue
        if name == "seconds" and not (math.isfinite(value) and value > 0):
            problems.append(Problem(name, f"got {cell}; accepted: a time above 0", where))
        elif name != "spread_fraction" and not (math.isfinite(value) and value >= 0):
            problems.append(Problem(name, f"got {cell}; accepted: a number of at least 0", where))
        row.append(value)
    return row if len(problems) == before else None
