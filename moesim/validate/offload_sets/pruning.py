"""EASY-EP: fewer experts on fewer nodes, at equal hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.files import Tree
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.run import run
from moesim.validate.claims import Claim

Data = Mapping[str, Any]


def pruning_claims(data: Data, seed: int) -> list[Claim]:
    """Tokens a second and device of a decode step, pruned over whole; each on the devices that it needs."""
    given = data["easy_ep"]
    rates = {}
    for row in [given["whole"], *given["pruned"]]:
        step_s = run(resolve_tree(_scenario(given, row, seed))).result.metrics["tpot_s"].value
        rates[row["experts"]] = given["concurrency"] / step_s / row["devices"]
    whole = rates[given["whole"]["experts"]]
    note = "decode steps of one pool of requests; tensor parallel, as many nodes as the weights need"
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


def _scenario(given: Data, row: Data, seed: int) -> Tree:
    nodes = row["devices"] // given["devices_per_node"]
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
