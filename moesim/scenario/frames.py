"""What a run or a variation found, as pandas data frames for notebooks. SI units, named in the columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

from moesim.engine.program import parts_of
from moesim.engine.spans import spans_of
from moesim.errors import InputError, did_you_mean
from moesim.scenario.result import Result
from moesim.scenario.run import AnyOutcome
from moesim.scenario.serve import ServingOutcome
from moesim.scenario.vary import AS_IT_IS, Point
from moesim.serving.summary import latencies
from moesim.units import PS_PER_S

if TYPE_CHECKING:
    from pandas import DataFrame

Varied: TypeAlias = tuple[Result, Sequence[Point]]
"""What :func:`moesim.scenario.vary.vary` returns."""


def frame(found: AnyOutcome | Varied, table: str = "metrics") -> DataFrame:
    """One table of an outcome of :func:`moesim.run`, or the points of :func:`moesim.vary`.

    Parameters
    ----------
    found : Outcome or tuple
        What either function returned.
    table : str
        ``metrics`` (value and band by name), ``breakdown``, ``sensitivity``, ``memory`` (bytes by part and
        ranks), ``sources``; of anything with a timeline ``spans`` (a row an instruction and rank); of a
        service ``requests`` (warm-up left out). Of points ``metrics`` alone: a row for the baseline and for
        each point, its overrides and metrics in columns, missing with an ``error`` where it did not run.

    Raises
    ------
    InputError
        A table that this outcome does not have.
    """
    import pandas as pd  # noqa: PLC0415 - a third of a second to import

    makers = _tables(found)
    if table not in makers:
        accepted = f"one of {', '.join(makers)}{did_you_mean(table, list(makers))}"
        raise InputError.at("table", table, accepted)
    rows, index = makers[table]()
    made = pd.DataFrame(rows)
    return made.set_index(index) if index in made else made


Table: TypeAlias = tuple[Any, str]
"""Rows or columns, and the name of the column that tells rows apart; empty: their number does."""


def _tables(found: AnyOutcome | Varied) -> dict[str, Callable[[], Table]]:
    if isinstance(found, tuple):
        return {"metrics": lambda: (_points(*found), "label")}
    result = found.result
    makers: dict[str, Callable[[], Table]] = {
        "metrics": lambda: (
            [{"name": name} | asdict(metric) for name, metric in result.metrics.items()],
            "name",
        ),
        "breakdown": lambda: ([asdict(share) for share in result.breakdown], ""),
        "sensitivity": lambda: ([asdict(change) for change in result.sensitivity], ""),
        "memory": lambda: (_memory(result), "ranks"),
        "sources": lambda: (list(result.sources), "path"),
    }
    if found.simulated is not None:
        makers["spans"] = lambda: (_spans(found), "")
    if isinstance(found, ServingOutcome):
        makers["requests"] = lambda: (_requests(found), "request")
    return makers


def _points(baseline: Result, points: Sequence[Point]) -> list[dict[str, Any]]:
    rows = []
    for point in (Point(AS_IT_IS, (), baseline), *points):
        row: dict[str, Any] = {"label": point.label}
        row |= dict(override.split("=", 1) for override in point.overrides)
        if point.result is not None:
            for name, metric in point.result.metrics.items():
                row[name] = metric.value
                if metric.low is not None:
                    row |= {f"{name}.low": metric.low, f"{name}.high": metric.high}
            row["limiter"] = point.result.limiter
        rows.append(row | ({"error": point.error} if point.error else {}))
    return rows


def _memory(result: Result) -> list[dict[str, Any]]:
    return [
        {"ranks": row["ranks"], **row["parts"], "free_bytes": row["free_bytes"]}
        for row in result.memory.get("per_rank", ())
    ]


def _spans(found: AnyOutcome) -> dict[str, Any]:
    simulated = found.simulated
    assert simulated is not None  # only then there is such a table
    program = simulated.program
    spans = spans_of(program, simulated.recorded)
    names = [" + ".join(part.name for part in parts_of(i)) for i in program.instructions]
    return {
        "rank": spans.rank,
        "stream": [program.streams[i] for i in spans.stream],
        "name": [names[i] for i in spans.instruction],
        "layer": [program.instructions[i].layer for i in spans.instruction],
        "start_s": spans.start_s,
        "end_s": spans.end_s,
    }


def _requests(found: ServingOutcome) -> dict[str, Any]:
    workload, measures = found.built.workload, found.measures
    counted = slice(workload.warmup, None)
    return {
        "request": range(workload.warmup, len(measures.arrival_ps)),
        "arrival_s": [ps / PS_PER_S for ps in measures.arrival_ps[counted]],
        "input_tokens": workload.input_tokens[counted],
        "output_tokens": workload.output_tokens[counted],
        "instance": measures.target[counted],
    } | asdict(latencies(workload, measures))
