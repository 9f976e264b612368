"""``moesim validate POINTS.csv``: measured serving runs beside predictions, with conditions and a page."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.cli.output import emit_json, envelope, note, table
from moesim.errors import CheckFailed
from moesim.units import fmt_seconds

if TYPE_CHECKING:
    from moesim.validate.serving_summary import Condition, Row

PAGE = "validation.html"
DOCUMENT = "validation.json"
STATISTICS = {
    "median_ape": "median",
    "mape": "mean",
    "p90_ape": "90 %",
    "bias": "bias",
    "coverage": "in band",
}


def validate_measured(
    path: Path,
    *,
    require: Sequence[str],
    out: Path | None,
    jobs: int,
    json: bool,
    no_timing: bool,
    leave_one_out: bool,
) -> None:
    """Predict every run of a file, show errors by group, and check the conditions.

    A folder holds runs request by request: these are replayed and shown side by side.
    """
    if path.is_dir():
        _validate_requests(path, json=json)
        return
    from time import perf_counter  # noqa: PLC0415

    from moesim.validate.serving_points import read_points  # noqa: PLC0415
    from moesim.validate.serving_run import predict  # noqa: PLC0415
    from moesim.validate.serving_summary import (  # noqa: PLC0415
        NUMBER_NAMES,
        Condition,
        numbers_of,
        plain_row,
        summary,
    )

    conditions = [
        Condition.parse(part, NUMBER_NAMES) for text in require for part in text.split(",") if part.strip()
    ]
    points = read_points(path).points
    started = perf_counter()
    with _bar(len(points)) as advance:
        rows = predict(points, jobs=jobs or os.cpu_count() or 1, folder=out, progress=advance)
    counted = summary(rows)
    timing = None if no_timing else {"wall_s": round(perf_counter() - started, 2)}
    document = envelope(
        "validate", points=path.name, rows=[plain_row(row) for row in rows], summary=counted, timing=timing
    )
    if leave_one_out:
        document["summary"] = counted | {"leave_one_out": _left_out(rows, show=not json)}
    if out is not None:
        _write(document, out)
    if json:
        emit_json(document)
    else:
        _show(rows, counted)
    _check(conditions, numbers_of(counted))


def _left_out(rows: Sequence[Row], *, show: bool) -> dict[str, Any]:
    """Errors under overheads fitted to other models, and the overheads that all rows together ask for."""
    from dataclasses import asdict  # noqa: PLC0415

    from moesim.validate.serving_overheads import fitted, leave_one_out, overall  # noqa: PLC0415
    from moesim.validate.serving_run import samples_of, shared_shapes  # noqa: PLC0415

    samples = samples_of(rows)
    same = shared_shapes(sample.model for sample in samples)
    models, overheads = leave_one_out(samples, same), fitted(samples)
    tpot, ttft = overall(samples, same)
    if show:
        lines = [(m.model, m.num_rows, m.tpot_median_ape, m.ttft_median_ape) for m in models]
        lines.append(("all", sum(m.num_rows for m in models), tpot, ttft))
        shown = [[name, count, _percent(one), _percent(other)] for name, count, one, other in lines]
        title = "Median error of each model under overheads fitted to the others"
        table(title, ["model", "runs", "tpot", "ttft"], shown, right=range(1, 4))
        fits = [
            [engine, family or "all"]
            + [fmt_seconds(o.iteration_s), fmt_seconds(o.sequence_s), fmt_seconds(o.request_s)]
            + [f"{o.delivery_iterations:.0f}"]
            for (engine, family), o in overheads.items()
        ]
        columns = ["engine", "family from", "iteration", "a sequence", "a request", "delivery (iterations)"]
        table("Overheads that these runs ask for", columns, fits, right=range(2, 6))
    return {
        "tpot_median_ape": tpot,
        "ttft_median_ape": ttft,
        "models": [asdict(m) for m in models],
        "overheads": [
            {"engine": engine, "family": family} | asdict(o) for (engine, family), o in overheads.items()
        ],
    }


def _validate_requests(folder: Path, *, json: bool) -> None:
    from moesim.hardware.load import profile_names  # noqa: PLC0415
    from moesim.validate.serving_requests import (  # noqa: PLC0415
        device_of,
        plain_requests,
        read_requests,
        replay,
        run_folders,
    )

    names = profile_names()
    runs = [replay(read_requests(path), device_of(path, names)) for path in run_folders(folder)]
    if json:
        emit_json(envelope("validate", points=folder.name, rows=[plain_requests(run) for run in runs]))
        return
    for run in runs:
        rows = [
            [name, fmt_seconds(row["measured_s"]), fmt_seconds(row["predicted_s"]), f"{run.error(name):+.1%}"]
            for name, row in run.rows.items()
        ]
        table(run.name, ["metric", "measured", "simulated", "error"], rows, right=range(1, 4))
        if run.correlation is not None:
            note(f"throughput over time: correlation {run.correlation:.3f}")


def _write(document: Mapping[str, Any], out: Path) -> None:
    from moesim.files import write_json  # noqa: PLC0415
    from moesim.report.validation_page import write_validation_page  # noqa: PLC0415

    page = write_validation_page(document, out / PAGE)
    written = write_json(out / DOCUMENT, document)
    note(f"wrote {page}, {written}")


def _show(rows: Sequence[Row], counted: Mapping[str, Any]) -> None:
    metrics = [
        [name, *(_percent(counted[name].get(statistic)) for statistic in STATISTICS)]
        for name in ("tpot", "ttft", "latency")
        if counted[name].get("n")
    ]
    title = f"{counted['n_predicted']} of {counted['n']} runs predicted; error of the prediction"
    table(title, ["metric", *STATISTICS.values()], metrics, right=range(1, 6))
    groups = [
        [group["model"], group["device"], group["engine"], group["n"], *_of_group(group)]
        for group in counted["groups"]
    ]
    columns = ["model", "device", "engine", "runs", "tpot", "bias", "in band", "ttft", "bias", "in band"]
    table("Median error by model, device and engine", columns, groups, right=range(3, 10))
    for reason, count in counted["unpredicted"].items():
        note(f"{count} not predicted: {reason}")
    warned = sorted({warning for row in rows for warning in row.warnings})
    for warning in warned:
        note(f"note: {warning}")


def _of_group(group: Mapping[str, Any]) -> list[str]:
    return [
        _percent(group[metric].get(statistic))
        for metric in ("tpot", "ttft")
        for statistic in ("median_ape", "bias", "coverage")
    ]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"


def _check(conditions: Sequence[Condition], numbers: Mapping[str, float]) -> None:
    missed = [
        f"{condition} (is {numbers.get(condition.name, float('nan')):.4g})"
        for condition in conditions
        if not condition.holds(numbers)
    ]
    if missed:
        message = f"{len(missed)} of {len(conditions)} conditions missed: {'; '.join(missed)}"
        raise CheckFailed(message)


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int, int], None]]:
    """Progress bar of rows on a terminal; silent in a pipe."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import (  # noqa: PLC0415
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("runs", total=total)

        def advance(done: int, total: int) -> None:
            shown.update(task, completed=done, total=total)

        yield advance
