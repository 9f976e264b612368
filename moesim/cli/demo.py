"""``moesim demo``: a first result without any input, ending with the path of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import note, table
from moesim.units import fmt_quantity, fmt_seconds

if TYPE_CHECKING:
    from moesim.scenario.result import Result

SCENARIOS = {
    "gpt_oss_20b_decode_h100x8": [],
    "deepseek_v3_decode_h200x32": ["batch.tokens_per_rank=96", "routing.num_batches=3"],
}
"""Shipped scenarios, and what is made smaller in them so that the demo takes seconds."""
REPLICAS_PER_RANK = 1


def command(
    out: Annotated[Path, typer.Option(help="Folder of the report; files in it are replaced.")] = Path(
        "reports/demo"
    ),
) -> None:
    """Simulate two shipped scenarios under three expert placements each, and report."""
    from moesim.cli.run import write_results  # noqa: PLC0415
    from moesim.scenario.compare import compare_placements  # noqa: PLC0415
    from moesim.scenario.resolve import resolve  # noqa: PLC0415
    from moesim.scenario.schema import PlacementSection  # noqa: PLC0415

    started = perf_counter()
    outcomes = []
    for name, overrides in SCENARIOS.items():
        resolved = resolve(name, overrides)
        plan = resolved.scenario.plan
        replicas = REPLICAS_PER_RANK * (plan.ep or plan.tp * plan.attention_dp)
        sections = [
            PlacementSection(method="linear"),
            PlacementSection(method="eplb", redundant_experts=replicas),
            PlacementSection(method="ilp", redundant_experts=replicas),
        ]
        outcomes.append(compare_placements(resolved, sections))
    simulated_s = perf_counter() - started
    for outcome in outcomes:
        _show(outcome.result)
    note(f"simulated in {fmt_seconds(simulated_s)}; drawing the report")
    written = write_results(outcomes, out, title="moesim demo")
    typer.echo(f"report: {written[0]}")
    typer.echo(
        f"timelines for https://ui.perfetto.dev: {', '.join(str(p) for p in written if p.suffix == '.gz')}"
    )


def _show(result: Result) -> None:
    typer.echo(f"\n{result.title}\n{result.answer}")
    rows = []
    for row in result.views["comparison"]:
        time, rate = row["metrics"][result.headline], _rate(row["metrics"])
        rows.append(
            [
                row["label"],
                fmt_quantity(time["value"], "s"),
                f"{fmt_quantity(time['low'], 's')} .. {fmt_quantity(time['high'], 's')}",
                fmt_quantity(rate["value"], rate["unit"]),
                f"{row['imbalance_fit']:.3f}",
                f"{row['imbalance_held_out']:.3f}",
                f"{100 * row['gap_fraction']:.2f} %",
            ]
        )
    columns = ["placement", result.headline, "80 % band", "per device", "max/mean fit", "max/mean held out"]
    table("Expert placements", [*columns, "gap to bound"], rows, right=[1, 3, 4, 5, 6])
    typer.echo(f"  limiter: {result.limiter}")


def _rate(metrics: Mapping[str, Any]) -> Any:
    return next(metric for name, metric in metrics.items() if name.endswith("_per_device"))
