"""``moesim placement rebalance``: how often a placement is worth renewing while traffic drifts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.cli.place import BatchTokens, PerNode, Ranks, Redundant, Scenario, Seed, Trace
from moesim.cli.place_inputs import read
from moesim.cli.progress import progress
from moesim.errors import InputError, Problem
from moesim.units import fmt_seconds

if TYPE_CHECKING:
    from moesim.placement.rebalance import Rebalanced
    from moesim.scenario.rebalancing import StepLaw
    from moesim.traces import RoutingTrace


def rebalance(
    trace: Trace,
    *,
    ranks: Ranks,
    redundant: Redundant = 0,
    ranks_per_node: PerNode = None,
    method: Annotated[str, typer.Option(help="Placement method; one that places by loads.")] = "eplb_swaps",
    every: Annotated[str | None, typer.Option(help="Steps between placements, such as 4,16,64.")] = None,
    window: Annotated[int, typer.Option(min=1, help="Steps that a placement is made from.")] = 16,
    batch_tokens: BatchTokens = 256,
    scenario: Scenario = None,
    seed: Seed = 0,
    json: bool = JSON_OPTION,
) -> None:
    """Replay a trace in its order and place anew every so many steps: balance, moves, break-even."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement import Problem as PlacementProblem  # noqa: PLC0415
    from moesim.placement import placement_methods  # noqa: PLC0415
    from moesim.placement.rebalance import intervals  # noqa: PLC0415
    from moesim.placement.rebalance import rebalance as replayed  # noqa: PLC0415

    loaded = read(trace)
    steps = _steps(loaded, batch_tokens)
    shape = PlacementProblem.with_redundancy(
        steps.sum(axis=0), ranks, redundant or 0, ranks_per_node=ranks_per_node
    )
    chosen = placement_methods.build(method, field="--method")
    asked = intervals(len(steps) - window, _numbers(every))
    runs = []
    with progress("rebalancing", len(asked)) as tick:
        for number in asked:
            rng = rng_for(seed, f"rebalance/{number}")
            runs.append(replayed(steps, shape, chosen, number, window, rng))
            tick(f"every {number}")
    law = None if scenario is None else _law(scenario, trace)
    document = _document(loaded, runs, law, batch_tokens, window)
    if json:
        emit_json(document)
    else:
        _show(document)


def _steps(trace: RoutingTrace, batch_tokens: int) -> Any:
    """Consecutive batches of the trace, ``(steps, layers, experts)``; a rest at the end is left out."""
    number = trace.num_tokens // batch_tokens
    if number < 2:
        message = f"got {batch_tokens}; accepted: at most half of the {trace.num_tokens} tokens of the trace"
        raise InputError([Problem("--batch-tokens", message)])
    windows = (trace.window(n * batch_tokens, (n + 1) * batch_tokens) for n in range(number))
    return np.stack([window.counts() for window in windows]).astype(float)


def _numbers(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = [0]
    if min(found) < 1:
        raise InputError([Problem("--every", f"got {text!r}; accepted: whole numbers >= 1 and commas")])
    return found


def _law(scenario: str, trace: str) -> StepLaw:
    from moesim.scenario.placing import scenario_on_trace  # noqa: PLC0415
    from moesim.scenario.rebalancing import step_law  # noqa: PLC0415

    return step_law(scenario_on_trace(scenario, trace))


def _document(
    trace: RoutingTrace, runs: list[Rebalanced], law: StepLaw | None, batch_tokens: int, window: int
) -> dict[str, Any]:
    never = runs[0]
    rows = []
    for run in runs:
        row: dict[str, Any] = {
            "every": run.every,
            "placements": len(run.moved),
            "imbalance_ratio": float(run.imbalance.mean()),
            "moved_experts": run.moved_experts,
        }
        if law is not None:
            step, move = law.mean_step_s(run), law.mean_move_s(run)
            row |= {
                "step_s": step,
                "move_s": move,
                "step_with_moves_s": step + move * len(run.moved) / len(run.objectives),
                "break_even_steps": law.break_even_steps(run, never) if run.every else None,
            }
        rows.append(row)
    metrics = {}
    if law is not None:
        best = min(rows, key=lambda row: float(row["step_with_moves_s"]))
        metrics = {
            "best_every": {"value": best["every"], "unit": "steps"},
            "best_step_s": {"value": best["step_with_moves_s"], "unit": "s"},
            "never_step_s": {"value": rows[0]["step_s"], "unit": "s"},
        }
    about = {"model": trace.info.model, "batch_tokens": batch_tokens, "window": window}
    return envelope("placement rebalance", problem=about, metrics=metrics, rows=rows)


def _show(document: dict[str, Any]) -> None:
    timed = bool(document["metrics"])
    rows = [
        [
            row["every"] or "never",
            row["placements"],
            f"{row['imbalance_ratio']:.4f}",
            row["moved_experts"],
            *(
                [
                    fmt_seconds(row["step_s"]),
                    fmt_seconds(row["move_s"]),
                    fmt_seconds(row["step_with_moves_s"]),
                    _steps_text(row),
                ]
                if timed
                else []
            ),
        ]
        for row in document["rows"]
    ]
    columns = ["every", "times", "max/mean", "experts moved"]
    columns += ["step", "a move", "step with moves", "pays off after"] if timed else []
    about = document["problem"]
    title = (
        f"{about['model']}: steps of {about['batch_tokens']} tokens, placed from the last {about['window']}"
    )
    table(title, columns, rows, right=range(len(columns)))
    if timed:
        best = document["metrics"]["best_every"]["value"]
        note(f"best: {'never' if not best else f'every {best} steps'}, moves included")
    else:
        note("add --scenario for seconds and the break-even interval")


def _steps_text(row: dict[str, Any]) -> str:
    if not row["every"]:
        return ""
    steps = row["break_even_steps"]
    return "never" if steps is None else f"{steps:,.1f} steps"
