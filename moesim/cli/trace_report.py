"""``moesim trace report``: a page of pictures of traces beside their generated stand-ins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from moesim.cli.output import note
from moesim.cli.trace_common import FORCE, SEED, loaded, refuse_existing
from moesim.cli.trace_compare import percent, twins_of


def report(
    traces: list[str] = typer.Argument(help="Traces, a column each."),
    *,
    out: Path = typer.Option(..., "--out", help="HTML page to write."),
    twin: list[str] = typer.Option(["matched", "uniform", "aic_power_law"], help="Generators. Repeatable."),
    seed: int = SEED,
    force: bool = FORCE,
) -> None:
    """Write a page with pictures of traces: the held-out half and stand-ins made from the other."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.report.trace_figures import write_trace_page  # noqa: PLC0415
    from moesim.traces.compare import BARS, behaviour, errors  # noqa: PLC0415
    from moesim.traces.curves import curves, domain_distance  # noqa: PLC0415

    refuse_existing([out], force)
    shown = []
    for name in traces:
        whole = loaded(name)
        fitted_on, held_out = whole.split()
        made = twins_of(twin, fitted_on, held_out, seed)
        wanted = behaviour(held_out, rng_for(seed, "trace/compare"))
        off = {n: errors(wanted, behaviour(t, rng_for(seed, "trace/compare"))) for n, t in made.items()}
        rows: list[dict[str, Any]] = [
            {
                "statistic": statistic.replace("_", " "),
                "reference": f"{wanted[statistic]:.3f}",
                "cells": [
                    {
                        "text": percent(off[n][statistic], bar.absolute),
                        "off": abs(off[n][statistic]) > bar.limit,
                    }
                    for n in made
                ],
            }
            for statistic, bar in BARS.items()
        ]
        drawn = {"recorded": held_out, **made}
        shown.append(
            {
                "label": _label(name, held_out.info.model),
                "source": held_out.info.source[:300],
                "names": list(made),
                "rows": rows,
                "domains": domain_distance(whole),
                "curves": {n: curves(t, rng_for(seed, "trace/curves")) for n, t in drawn.items()},
            }
        )
    write_trace_page({"traces": shown}, out, heading="Recorded routing and its stand-ins")
    note(f"wrote {out}")


def _label(trace: str, model: str) -> str:
    """What a column is headed by: the model, or the file where the recorder did not name one."""
    from moesim.traces.interchange import UNKNOWN_MODEL  # noqa: PLC0415

    return (Path(trace).stem if model in ("", UNKNOWN_MODEL) else model)[:60]
