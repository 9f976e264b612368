"""``moesim placement splits``: run-time policies that split tokens over copies, side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.cli.place import BatchTokens, PerNode, Ranks, Redundant, SamplingOption, Seed, Trace
from moesim.cli.place_inputs import Judging, Slots, assignment, problem_of, traffic_of
from moesim.cli.progress import progress
from moesim.errors import InputError, Problem

if TYPE_CHECKING:
    from moesim.placement.placed import Placement
    from moesim.traces import RoutingTrace

TAIL = 0.95
COLUMNS = ("imbalance_ratio", "ranks_per_token", "cross_rank_sends", "cross_node_sends", "moved_experts")


def splits(
    trace: Trace,
    *,
    ranks: Ranks,
    redundant: Redundant = 0,
    ranks_per_node: PerNode = None,
    method: Annotated[str, typer.Option(help="Placement method.")] = "eplb_swaps",
    policy: Annotated[list[str] | None, typer.Option(help="Split policy; repeats. Default: all.")] = None,
    param: Annotated[list[str] | None, typer.Option(help="Parameter NAME=VALUE of the one policy.")] = None,
    batch_tokens: BatchTokens = 512,
    num_batches: Annotated[int, typer.Option(min=1, help="Batches of unseen traffic.")] = 8,
    batch_sampling: SamplingOption = "scattered",
    seed: Seed = 0,
    json: bool = JSON_OPTION,
) -> None:
    """Compare how tokens are split over copies while serving, on unseen traffic."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement import placement_methods  # noqa: PLC0415
    from moesim.placement.registry import needs_of  # noqa: PLC0415
    from moesim.placement.split_registry import splits as registered  # noqa: PLC0415

    judging = Judging(batch_tokens=batch_tokens, sampling=batch_sampling)
    traffic = traffic_of(trace, judging)
    chosen = placement_methods.build(method, field="--method")
    problem = problem_of(
        traffic, Slots(ranks, ranks_per_node, redundant=redundant), judging, seed, needs_of(chosen)
    )
    placed = chosen.solve(problem, rng_for(seed, f"place/{method}")).placement
    names = policy or registered.names()
    if param and len(names) != 1:
        raise InputError([Problem("--param", f"goes with one --policy; got {', '.join(names)}")])
    built = {
        name: registered.build(name, dict(map(assignment, param or [])), field="--policy") for name in names
    }
    batches = _batches(traffic.held_out, judging, num_batches, seed)
    rows = []
    with progress("splits", len(built)) as tick:
        for name, split in built.items():
            rows.append({"policy": name} | _judged(split, batches, placed, ranks_per_node, seed))
            tick(name)
    document = envelope(
        "placement splits",
        problem={
            "model": traffic.trace.info.model,
            "num_ranks": ranks,
            "redundant_experts": problem.num_replicas,
            "batch_tokens": batch_tokens,
            "method": method,
        },
        rows=rows,
    )
    if json:
        emit_json(document)
    else:
        _show(document)


def _batches(trace: RoutingTrace, judging: Judging, num_batches: int, seed: int) -> list[Any]:
    """Experts of the tokens of every batch."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement.unseen import plain_ids  # noqa: PLC0415

    rng = rng_for(seed, "splits/batches")
    found = []
    for _ in range(num_batches):
        if judging.sampling == "contiguous":
            start = int(rng.integers(trace.num_tokens))
            rows = (start + np.arange(judging.batch_tokens)) % trace.num_tokens
        else:
            rows = rng.integers(trace.num_tokens, size=judging.batch_tokens)
        found.append(plain_ids(trace, rows))
    return found


def _judged(
    split: Any, batches: list[Any], placed: Placement, ranks_per_node: int | None, seed: int
) -> dict[str, float]:
    """Means over batches and layers, and the bad batches."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement.dispatch import dispatch  # noqa: PLC0415

    rng = rng_for(seed, "splits/draws")
    results = []
    for tokens in batches:
        source = np.arange(len(tokens)) % placed.num_ranks
        results.append(dispatch(tokens, source, placed, split, rng, ranks_per_node=ranks_per_node))
    imbalance = np.stack([one.imbalance for one in results])
    return {
        "imbalance_ratio": float(imbalance.mean()),
        "imbalance_ratio_p95": float(np.quantile(imbalance, TAIL)),
        "ranks_per_token": float(np.mean([one.ranks_per_token for one in results])),
        "cross_rank_sends": float(np.mean([one.cross_rank_tokens for one in results])),
        "cross_node_sends": float(np.mean([one.cross_node_tokens for one in results])),
        "moved_experts": float(np.mean([one.moved_experts for one in results])),
    }


def _show(document: dict[str, Any]) -> None:
    about = document["problem"]
    rows = [
        [
            row["policy"],
            f"{row['imbalance_ratio']:.4f}",
            f"{row['imbalance_ratio_p95']:.3f}",
            *(f"{row[name]:.3f}" for name in COLUMNS[1:4]),
            f"{row['moved_experts']:.1f}",
        ]
        for row in sorted(document["rows"], key=lambda row: float(row["imbalance_ratio"]))
    ]
    title = (
        f"{about['model']} on {about['num_ranks']} ranks, {about['redundant_experts']} replicas by "
        f"{about['method']}: batches of {about['batch_tokens']} tokens"
    )
    columns = ["split", "max/mean", "p95", "ranks/token", "to other ranks", "to other nodes", "weights moved"]
    table(title, columns, rows, right=range(1, 7))
