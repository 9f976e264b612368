"""EASY-EP: fewer experts on fewer nodes, at equal hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.files import Tree
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.run import run
from moesim.units import MS
from moesim.validate.claims import Claim

Data = Mapping[str, Any]


def pruning_claims(data: Data, seed: int) -> list[Claim]:
    """Tokens a second and device of a decode step, pruned over whole; each on the devices that it needs.

    Tensor parallelism over two nodes costs a step more than the all-reduces' formulas say; how much is what
    a measured step of the whole model at batch 1, which is not compared, has beside ours.
    """
    given = data["easy_ep"]
    measured = given["two_nodes"]
    between_s = measured["tpot_s"] - _step_s({**given, **measured}, given["whole"], seed)
    rates = {}
    for row in [given["whole"], *given["pruned"]]:
        step_s = _step_s(given, row, seed) + (between_s if _nodes(given, row) > 1 else 0.0)
        rates[row["experts"]] = given["concurrency"] / step_s / row["devices"]
    whole = rates[given["whole"]["experts"]]
    note = (
        "decode steps of one pool of requests; tensor parallel, as many nodes as the weights need; "
        f"{between_s / MS:.1f} ms a step between nodes, from another machine's rate at batch 1"
    )
    return [
        Claim(
            f"EASY-EP, {row['experts']} of {given['whole']['experts']} experts",
            given["source"],
            "ratio",
            row["ratio"],
            rates[row["experts"]] / whole,
            0.3,
            note=note,
        )
        for row in given["pruned"]
    ]


def _step_s(given: Data, row: Data, seed: int) -> float:
    """A decode step of a model with the experts of ``row`` on its devices. [s]"""
    return float(run(resolve_tree(_scenario(given, row, seed))).result.metrics["tpot_s"].value)


def _nodes(given: Data, row: Data) -> int:
    return int(row["devices"] // given["devices_per_node"])


def _scenario(given: Data, row: Data, seed: int) -> Tree:
    nodes = _nodes(given, row)
    tree = {
        "schema_version": 1,
        "name": "easy_ep",
        "question": "decode_step",
        "model": {"name": given["model"], "n_routed_experts": row["experts"]},
        "dtypes": {"weights": "fp8", "experts": "fp8"},
        "cluster": {
            "node": given["node"],
            "num_nodes": nodes,
            "scale_out": {"kind": "rail_optimised" if nodes > 1 else "none"},
        },
        "plan": {"tp": row["devices"], "ep": 1, "moe_tp": row["devices"]},
        "routing": {"generator": "fitted_skew", "num_batches": 2},
        "batch": {"tokens_per_rank": given["concurrency"], "context_tokens": given["context_tokens"]},
        "engine": {"name": "sglang"},
        "bands": {"samples": 2},
        "seed": seed,
    }
    return Tree(tree, {}, "easy_ep")
