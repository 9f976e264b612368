"""Small scenarios whose numbers are recorded; a change here must say why a number moved.

Never alone: ``tests/unit/scenario/test_physics.py`` and ``tests/data/test_scenarios.py`` hold the laws that
would fail if a recorded number were wrong.
"""

import json
from pathlib import Path

import pytest

from moesim.files import Tree
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.run import run

HERE = Path(__file__).parent

BASE = {
    "schema_version": 1,
    "question": "decode_step",
    "model": "qwen3_30b_a3b",
    "cluster": "h100_x8",
    "routing": {"generator": "zipf", "num_batches": 2},
    "batch": {"tokens_per_rank": 16, "context_tokens": 512},
    "bands": {"samples": 8},
    "seed": 1,
}
CASES = {
    "expert_parallel": {"plan": {"attention_dp": 8, "ep": 8}, "placement": {"method": "eplb"}},
    "tensor_parallel": {"plan": {"tp": 4, "ep": 1, "moe_tp": 4}},
    "pipeline": {"plan": {"tp": 1, "pp": 2, "attention_dp": 2, "ep": 2}},
    "prefill_two_batch": {
        "question": "prefill_step",
        "plan": {"attention_dp": 4, "ep": 4},
        "batch": {"tokens_per_rank": 256},
        "overlap": {"policy": "two_batch"},
    },
}


def rounded(node):
    """Ten significant digits: what a different summation order may not change."""
    if isinstance(node, float):
        return float(f"{node:.10g}")
    if isinstance(node, dict):
        return {key: rounded(value) for key, value in node.items()}
    return [rounded(value) for value in node] if isinstance(node, list) else node


@pytest.mark.parametrize("name", CASES)
def test_golden(name, request):
    tree = Tree({**BASE, "name": name, **CASES[name]}, source=name)
    document = run(resolve_tree(tree)).result.document(with_views=False)
    kept = rounded({key: document[key] for key in ("metrics", "breakdown", "evidence", "limiter")})
    path = HERE / f"{name}.json"
    if request.config.getoption("--update-golden"):
        path.write_text(json.dumps(kept, indent=1) + "\n")
    assert json.loads(path.read_text()) == kept
