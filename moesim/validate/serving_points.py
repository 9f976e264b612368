"""Measured serving runs from a CSV file: one row a run, every problem of the file told at once."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from moesim.errors import InputError, Problem, did_you_mean
from moesim.units import MS

MOST_PROBLEMS = 50
"""A file that is wrong throughout is told by its first problems."""

POOL_FIELDS = ("num_workers", "batch", "tp", "pp", "attention_dp", "moe_tp", "moe_ep")


def _empty_is_one(value: Any) -> Any:
    return 1 if value in ("", None) else value


Degree = Annotated[int, BeforeValidator(_empty_is_one), Field(ge=1)]


class Layout(BaseModel):
    """Degrees of parallelism as the columns name them; an empty one is 1."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tp: Degree = 1
    pp: Degree = 1
    attention_dp: Degree = 1
    moe_tp: Degree = 1
    moe_ep: Degree = 1

    @property
    def num_devices(self) -> int:
        """Devices of one instance. [-]"""
        return self.tp * self.pp * self.attention_dp

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        stage, experts = self.tp * self.attention_dp, self.moe_tp * self.moe_ep
        if experts not in {1, stage}:
            message = (
                f"tp * attention_dp = {stage}, moe_tp * moe_ep = {experts}; accepted: equal, or 1 (dense)"
            )
            raise ValueError(message)
        return self


class Pool(Layout):
    """Workers of one phase of a disaggregated service.

    Attributes
    ----------
    num_workers : int
        Instances. [-]
    batch : int or None
        Most sequences of one of a worker's attention ranks. [-]
    """

    num_workers: int = Field(ge=1)
    batch: int | None = Field(None, ge=1)


class Point(BaseModel):
    """A measured run.

    Attributes
    ----------
    id, source, model, device, engine, engine_version : str
        Names; ``engine_version`` may be empty.
    num_devices : int or None
        All devices, where stated. [-]
    gemm_dtype, expert_dtype, kv_dtype : str
        Labels of formats; empty where they are not known.
    mode : str
        ``colocated`` or ``disaggregated``.
    input_tokens, output_tokens, concurrency : int
        Nominal lengths; clients. [tokens], [tokens], [-]
    layout : Layout or None
        Of the co-located instance.
    prefill, decode : Pool or None
        Of a disaggregated service.
    ttft_s, tpot_s : float or None
        What was measured: time to the first token, time of each further one. [s]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    source: str = ""
    model: str = Field(min_length=1)
    device: str = Field(min_length=1)
    num_devices: int | None = Field(None, ge=1)
    engine: str = Field(min_length=1)
    engine_version: str = ""
    gemm_dtype: str = ""
    expert_dtype: str = ""
    kv_dtype: str = ""
    mode: Literal["colocated", "disaggregated"]
    input_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=2)
    concurrency: int = Field(ge=1)
    layout: Layout | None = None
    prefill: Pool | None = None
    decode: Pool | None = None
    ttft_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    tpot_s: float | None = Field(None, gt=0, allow_inf_nan=False)

    @property
    def is_disaggregated(self) -> bool:
        """Whether prefill and decode run on workers of their own."""
        return self.mode == "disaggregated"

    @property
    def devices(self) -> int:
        """Devices of the whole service. [-]"""
        pools = [pool for pool in (self.prefill, self.decode) if pool]
        if self.layout is not None and not self.is_disaggregated:
            return self.layout.num_devices
        return sum(pool.num_workers * pool.num_devices for pool in pools)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.is_disaggregated and not (self.prefill and self.decode):
            message = "mode disaggregated needs prefill_num_workers and decode_num_workers with their plans"
            raise ValueError(message)
        if not self.is_disaggregated and self.layout is None:
            message = "mode colocated needs a plan: tp"
            raise ValueError(message)
        if self.num_devices is not None and self.num_devices < self.devices:
            message = f"num_devices={self.num_devices}, but the plan needs {self.devices}"
            raise ValueError(message)
        return self


_POOLS = tuple(f"{phase}_{name}" for phase in ("prefill", "decode") for name in POOL_FIELDS)
_PLAIN = tuple(n for n in Point.model_fields if n not in {"layout", "prefill", "decode", "ttft_s", "tpot_s"})
COLUMNS = (*_PLAIN, *Layout.model_fields, *_POOLS, "ttft_ms", "tpot_ms")
REQUIRED = ("id", "model", "device", "engine", "mode", "input_tokens", "output_tokens", "concurrency")


@dataclass(frozen=True, slots=True)
class Points:
    """Runs of one file.

    Attributes
    ----------
    path : Path
    points : tuple of Point
        In the order of the file.
    """

    path: Path
    points: tuple[Point, ...]


def read_points(path: Path) -> Points:
    """Runs of a CSV file.

    Raises
    ------
    InputError
        Unreadable, not such a table, or rows with wrong values: every problem with its line and column.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", strict=True)
            rows = [(reader.line_num, row) for row in reader]
            header = list(reader.fieldnames or ())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError([Problem("", f"cannot be read: {error}", str(path))]) from None
    problems = _header_problems(path, header)
    if problems:
        raise InputError(problems, source=str(path))
    points: list[Point] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        where = f"{path}:{line}"
        found = _point(row, where, problems)
        if found is None:
            continue
        if found.id in seen:
            message = f"got {found.id!r} again, first on line {seen[found.id]}; accepted: unique"
            problems.append(Problem("id", message, where))
        seen.setdefault(found.id, line)
        points.append(found)
    if not rows:
        problems.append(Problem("", "no rows; accepted: a header and one row a measured run", str(path)))
    if problems:
        raise InputError(_shortened(problems), source=str(path))
    return Points(path, tuple(points))


def _header_problems(path: Path, header: list[str]) -> list[Problem]:
    where = f"{path}:1"
    missing = [Problem(name, "missing column (required)", where) for name in REQUIRED if name not in header]
    unknown = [
        Problem(name, f"unknown column{did_you_mean(name, COLUMNS)}", where)
        for name in header
        if name not in COLUMNS
    ]
    twice = sorted({name for name in header if header.count(name) > 1})
    return missing + unknown + [Problem(name, "column given twice", where) for name in twice]


def _point(row: Mapping[str, str | None], where: str, problems: list[Problem]) -> Point | None:
    if "" in row or None in row.values():
        problems.append(Problem("", "more or fewer cells than the header has columns", where))
        return None
    cells = {name: (value or "").strip() for name, value in row.items()}
    data: dict[str, Any] = {n: cells[n] for n in _PLAIN if cells.get(n, "") != ""}
    disaggregated = cells["mode"] == "disaggregated"
    if not disaggregated and cells.get("tp"):
        data["layout"] = {n: cells.get(n, "") for n in Layout.model_fields}
    for phase in ("prefill", "decode"):
        own = {n: cells.get(f"{phase}_{n}", "") for n in POOL_FIELDS}
        if disaggregated and own["num_workers"]:
            data[phase] = {n: v for n, v in own.items() if v != ""}
    for name in ("ttft", "tpot"):
        text = cells.get(f"{name}_ms", "")
        if text:
            data[f"{name}_s"] = _seconds(text)
    try:
        return Point.model_validate(data)
    except ValidationError as error:
        problems += [Problem(_column(e["loc"]), _told(e), where) for e in error.errors(include_url=False)]
        return None


def _seconds(text: str) -> float | str:
    try:
        return float(text) * MS
    except ValueError:
        return text


def _column(location: tuple[int | str, ...]) -> str:
    """Name of the column behind a place in the data."""
    parts = [str(part) for part in location]
    name = "_".join(part for part in parts if part != "layout")
    return name.replace("_s", "_ms") if name in {"ttft_s", "tpot_s"} else name


def _told(error: Any) -> str:
    if error["type"] == "missing":
        return "missing (required)"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    accepted = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"got {error['input']!r}; accepted: {accepted}"


def _shortened(problems: list[Problem]) -> list[Problem]:
    rest = len(problems) - MOST_PROBLEMS
    if rest <= 0:
        return problems
    return [*problems[:MOST_PROBLEMS], Problem("", f"and {rest} more problems")]
