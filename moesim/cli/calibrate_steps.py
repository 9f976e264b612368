"""``moesim calibrate steps``: predicted against measured wall time of whole models on one device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.errors import InputError, Problem
from moesim.units import fmt_seconds


def steps(
    cluster: Annotated[str, typer.Argument(help="Cluster or node profile of the machine.")],
    model: Annotated[list[str], typer.Option(help="NAME=FOLDER of a model in the tables; repeats.")],
    trace: Annotated[list[str] | None, typer.Option(help="NAME=TRACE of a model's routing; repeats.")] = None,
    measured: Annotated[
        Path | None, typer.Option(help="Folder of measurements; that of the device by default.")
    ] = None,
    json: bool = JSON_OPTION,
) -> None:
    """Compare measured steps of whole models with predictions that never saw them."""
    from moesim.hardware.load import load_cluster  # noqa: PLC0415
    from moesim.kernels.measured import read_folder  # noqa: PLC0415
    from moesim.validate.whole_models import predicted_steps, summary  # noqa: PLC0415

    device = load_cluster(cluster).node.device.name
    tables = read_folder(measured or Path("calibration") / "measurements" / device)
    folders = {name: Path(value) for name, value in _pairs("--model", model)}
    routing = {name: {"trace": value} for name, value in _pairs("--trace", trace or [])}
    rows = predicted_steps(tables, cluster, folders, routing)
    total = summary(rows)
    by_phase = {p: summary(r for r in rows if r.phase == p) for p in ("prefill", "decode")}
    if json:
        plain: list[dict[str, Any]] = [asdict(row) | {"error_fraction": row.error_fraction} for row in rows]
        emit_json(envelope("calibrate steps", rows=plain, summary=total, phases=by_phase))
        return
    shown = [
        [
            row.model,
            row.phase,
            f"{row.num_sequences} x {row.query_tokens}",
            row.context_tokens,
            fmt_seconds(row.measured_s),
            fmt_seconds(row.predicted_s),
            f"{fmt_seconds(row.low_s)} .. {fmt_seconds(row.high_s)}",
            f"{100 * row.error_fraction:+.0f} %",
        ]
        for row in rows
    ]
    columns = [
        "model",
        "phase",
        "sequences x tokens",
        "context",
        "measured",
        "predicted",
        "80 % band",
        "error",
    ]
    table(f"Whole models on {cluster}", columns, shown, right=[3, 4, 5, 7])
    for name, part in {"all": total, **by_phase}.items():
        if part["n"]:
            typer.echo(
                f"  {name}: median error {100 * part['median_ape']:.0f} %, 90 % within "
                f"{100 * part['p90_ape']:.0f} %, bias {100 * part['bias']:+.0f} %, "
                f"{100 * part['coverage']:.0f} % inside the band, n = {part['n']:.0f}"
            )


def _pairs(option: str, values: list[str]) -> list[tuple[str, str]]:
    pairs = [tuple(value.split("=", 1)) for value in values]
    wrong = [value for value, pair in zip(values, pairs, strict=True) if len(pair) != 2 or not all(pair)]
    if wrong:
        raise InputError([Problem(option, f"got {value!r}; accepted: NAME=PATH") for value in wrong])
    return [(pair[0], pair[1]) for pair in pairs]
