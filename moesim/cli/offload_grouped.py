"""``moesim offload grouped``: samples that each need some whole models, sorted by model (Symbolic-MoE)."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.units import fmt_seconds


def grouped(
    *,
    models: Annotated[int, typer.Option(min=1, help="Models to choose from.")] = 16,
    per_sample: Annotated[int, typer.Option(min=1, help="Models that a sample needs.")] = 3,
    samples: Annotated[int, typer.Option(min=1, help="Samples.")] = 200,
    devices: Annotated[int, typer.Option(min=1, help="Devices, each holding one model.")] = 1,
    load_s: Annotated[float, typer.Option(min=0, help="Time to load a model. [s]")] = 15.0,
    run_s: Annotated[float, typer.Option(min=0, help="Time of one sample on a model, batched. [s]")] = 1.0,
    skew: Annotated[float, typer.Option(min=0, help="Zipf exponent of how often models are chosen.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choices.")] = 0,
    json: bool = JSON_OPTION,
) -> None:
    """Loads and time of samples one by one against grouped by model."""
    import numpy as np  # noqa: PLC0415

    from moesim.errors import InputError  # noqa: PLC0415
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.offload.throughput import (  # noqa: PLC0415
        grouped_makespan_s,
        sequential_loads,
        sequential_makespan_s,
    )

    if per_sample > models:
        raise InputError.at("--per-sample", per_sample, f"1 to the {models} models")
    share = (1.0 + np.arange(models)) ** -skew
    draw = rng_for(seed, "offload/grouped")
    choices = [
        draw.choice(models, per_sample, replace=False, p=share / share.sum()).tolist() for _ in range(samples)
    ]
    times = {"load_s": load_s, "run_s": run_s}
    rows = [
        {
            "order": "one by one",
            "loads": sequential_loads(choices),
            "seconds": sequential_makespan_s(choices, **times) / devices,
        },
        {
            "order": "grouped",
            "loads": len({model for chosen in choices for model in chosen}),
            "seconds": grouped_makespan_s(choices, num_devices=devices, **times),
        },
    ]
    if json:
        emit_json(envelope("offload grouped", rows=rows))
        return
    title = f"{samples} samples, {per_sample} of {models} models each, {devices} devices"
    cells = [[row["order"], row["loads"], fmt_seconds(float(str(row["seconds"])))] for row in rows]
    table(title, ["order", "loads", "time"], cells, right=(1, 2))
