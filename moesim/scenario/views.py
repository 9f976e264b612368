"""What reports draw, as plain lists: loads, traffic, placements and where every number comes from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.files import Tree
from moesim.hardware.audit import field_origins
from moesim.kernels.efficiency import roofline_efficiencies
from moesim.kernels.fitted import FittedCost
from moesim.model.dtypes import bytes_per_element
from moesim.placement import Solution, best_bound, evaluate, gap_fraction, placement_methods
from moesim.scenario.build import Built
from moesim.scenario.link_views import network_rows
from moesim.steps.layers import Lane

RANKS_DRAWN = 64
"""Beyond this many ranks, link bytes are summed over nodes."""

Batches = Sequence[Sequence[Sequence[Lane]]]


def routing_views(built: Built, batches: Batches) -> dict[str, Any]:
    """Views of a routed scenario; empty for a dense model."""
    if built.solution is None or built.traffic is None:
        return {}
    counts = mean_expert_counts(batches)
    layers = list(built.model.moe_layers)
    variants = {"linear": _linear(built).placement, placement_label(built): built.solution.placement}
    return {
        "expert_load": {"layers": layers, "tokens": _rounded(counts)},
        "rank_load": {
            "layers": layers,
            "variants": [
                {"label": label, "tokens": _rounded(evaluate(counts, placement).rank_loads)}
                for label, placement in variants.items()
            ],
        },
        "traffic": traffic_view(built, batches),
        "comparison": [
            placement_row(built, label, solution)
            for label, solution in {"linear": _linear(built), placement_label(built): built.solution}.items()
        ],
    }


def placement_label(built: Built) -> str:
    """How the scenario's placement is called in tables."""
    section = built.scenario.placement
    return Path(section.file).stem if section.file else section.method


def mean_expert_counts(batches: Batches) -> NDArray[np.float64]:
    """Tokens of each expert in a step, averaged over batches, ``(layer, expert)``. [tokens]"""
    per_batch = [
        np.concatenate(
            [
                sum(lane.routed.expert_counts for lane in stage if lane.routed is not None)
                for stage in stages
                if any(lane.routed is not None for lane in stage)
            ]
        )
        for stages in batches
    ]
    return np.asarray(np.mean(per_batch, axis=0))


def placement_row(built: Built, label: str, solution: Solution) -> dict[str, Any]:
    """Objective, bound and imbalance of one placement, on the traffic it saw and on the other half."""
    assert built.problem is not None  # asked for routed scenarios only
    assert built.traffic is not None
    fit = evaluate(built.problem.loads, solution.placement)
    held_out = evaluate(built.traffic.held_out.counts(), solution.placement)
    bound = float(best_bound(built.problem, solution.lower_bound).sum())
    return {
        "label": label,
        "objective": fit.objective,
        "lower_bound": bound,
        "gap_fraction": gap_fraction(fit.objective, bound),
        "imbalance_fit": fit.imbalance_ratio,
        "imbalance_held_out": held_out.imbalance_ratio,
    }


def traffic_view(built: Built, batches: Batches) -> dict[str, Any]:
    """Bytes of dispatch and combine of one step between ranks (or nodes), both link classes."""
    ranks = built.plan.num_devices
    total = {"scale_up": np.zeros((ranks, ranks)), "scale_out": np.zeros((ranks, ranks))}
    hidden = built.model.routed_hidden
    there = hidden * bytes_per_element(built.scenario.dtypes.dispatch)
    back = hidden * bytes_per_element(built.dtypes.activations)
    if built.plan.attention_dp > 1:
        for stages in batches:
            for index, stage in enumerate(stages):
                place = np.ix_(built.plan.stage_ranks(index), built.plan.stage_ranks(index))
                for lane in stage:
                    for name in total if lane.routed is not None else ():
                        pairs = getattr(lane.routed.traffic, name)  # type: ignore[union-attr]
                        total[name][place] += (pairs * there + pairs.T * back) / len(batches)
    scope, note = "rank", "dispatch and combine of one step, mean over routed batches"
    if ranks > RANKS_DRAWN:
        node = np.asarray(built.machine.fabric.node)
        total = {name: _by_node(pairs, node) for name, pairs in total.items()}
        scope, note = "node", f"{note}; summed over the ranks of a node"
    return {"unit": "bytes", "scope": scope, "note": note} | {n: _rounded(p) for n, p in total.items()}


def memory_view(built: Built) -> dict[str, Any]:
    """Bytes by part for each run of ranks that hold the same, against the capacity."""
    ledger, rows = built.ledger, []
    for stage in range(built.plan.pp):
        ranks = built.plan.stage_ranks(stage)
        first = int(ranks[0])
        rows.append(
            {
                "ranks": f"{first}-{int(ranks[-1])}" if len(ranks) > 1 else str(first),
                "parts": {name: float(size[first]) for name, size in ledger.parts.items()},
                "free_bytes": float(ledger.free_bytes[first]),
            }
        )
    return {"capacity_bytes": ledger.capacity_bytes, "per_rank": rows}


def sources_of_cluster(tree: Tree) -> list[dict[str, Any]]:
    """Every described number of the machine, with its grade and source."""
    return [
        {"path": f"cluster.{o.path}", "value": o.value, "unit": o.unit, "grade": o.grade, "source": o.source}
        for o in field_origins(tree.sub("cluster"))
        if o.grade
    ]


def sources_of(built: Built) -> list[dict[str, Any]]:
    """Every described number that the run used, with its grade and source."""
    rows = sources_of_cluster(built.resolved.tree)
    for title, efficiencies in (
        ("kernels", roofline_efficiencies()),
        ("network", built.machine.fabric.efficiencies),
    ):
        for name, family in efficiencies.families.items():
            text = efficiencies.sources.get(f"families.{name}", efficiencies.sources["families"])
            grade, _, said = text.partition(":")
            for field, value in family.model_dump().items():
                path = f"calibration.{title}.{name}.{field}"
                rows.append(
                    {"path": path, "value": value, "unit": "", "grade": grade, "source": said.strip()}
                )
    rows += _fit_rows(built)
    rows += network_rows(built)
    reserve = built.scenario.memory.reserved_fraction
    said = "driver context, workspaces, graphs and fragmentation"
    rows.append(
        {"path": "memory.reserved_fraction", "value": reserve, "unit": "", "grade": "assumed", "source": said}
    )
    return rows


def _fit_rows(built: Built) -> list[dict[str, Any]]:
    """Fits behind the kernel times, each with its held-out median error."""
    cost = built.machine.cost
    if not isinstance(cost, FittedCost):
        return []
    path = f"calibration.fits.{cost.fits.device}"
    return [
        {
            "path": f"{path}.{fit.key}.median_ape",
            "value": fit.held_out.median_ape if fit.held_out else None,
            "unit": "fraction",
            "grade": cost.grade,
            "source": fit.evidence,
        }
        for fits in cost.fits.chosen(cost.engine).values()
        for fit in fits
    ]


def inputs_of(files: Sequence[str | Path]) -> list[dict[str, str]]:
    """Files read, by name, with the SHA-256 of their content."""
    rows = []
    for file in dict.fromkeys(map(str, files)):
        path = Path(file)
        if path.is_file():
            rows.append({"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    return rows


def _linear(built: Built) -> Solution:
    assert built.problem is not None  # asked for routed scenarios only
    method = placement_methods.build("linear")
    return method.solve(built.problem, rng_for(built.scenario.seed, "placement"))


def _by_node(pairs: NDArray[np.float64], node: NDArray[np.int64]) -> NDArray[np.float64]:
    member = (node[:, None] == np.arange(node.max() + 1)).astype(np.float64)
    return np.asarray(member.T @ pairs @ member)


def _rounded(values: NDArray[np.float64]) -> list[list[float]]:
    """Three decimals: enough for a picture, and small files."""
    return [[round(float(v), 3) for v in row] for row in values]
