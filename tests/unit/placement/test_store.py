import json
import os
import subprocess
import sys

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement import Placement
from moesim.placement.store import StoredPlacement, read_placement, to_text, write_placement

PLACED = Placement([[0, 1, 2, 0], [2, 1, 0, 1]], 3, 2)
SPLIT = Placement([[0, 1, 2, 0]], 3, 2, split=[[0.3, 1.0, 1.0, 0.7]])
STORED = StoredPlacement(PLACED, "toy", (1, 4), "eplb", "toy traffic")


def changed(tmp_path, **fields):
    document = json.loads(to_text(STORED)) | fields
    path = tmp_path / "p.json"
    path.write_text(json.dumps({k: v for k, v in document.items() if v is not ...}))
    return path


@pytest.mark.parametrize("stored", [STORED, StoredPlacement(SPLIT, "toy", (0,))])
def test_round_trip(tmp_path, stored):
    back = read_placement(write_placement(tmp_path / "p.json", stored))
    assert back == stored
    assert to_text(back) == to_text(stored)


def test_one_line_a_layer(tmp_path):
    text = to_text(STORED)
    assert "\n    [0, 1, 0, 2],\n    [1, 2, 0, 1]\n" in text
    assert json.loads(text)["slots_per_rank"] == 2


def test_random_placements_round_trip_exactly(tmp_path):
    rng = np.random.default_rng(0)
    experts = np.stack([np.concatenate([rng.permutation(9), rng.permutation(9)[:3]]) for _ in range(4)])
    even = Placement(experts, 9, 3)
    uneven = rng.random(experts.shape)
    rows = np.arange(4)[:, None]
    totals = np.zeros((4, 9))
    np.add.at(totals, (rows, even.physical_to_logical), uneven)
    split = uneven / totals[rows, even.physical_to_logical]
    stored = StoredPlacement(Placement(even.physical_to_logical, 9, 3, split), "m", (0, 1, 2, 3))
    assert read_placement(write_placement(tmp_path / "p.json", stored)) == stored


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"kind": "other"}, "not a placement file"),
        ({"colour": "red"}, "colour: unknown field"),
        ({"model": ...}, r"model: missing"),
        ({"num_ranks": 0}, "num_ranks: got 0"),
        ({"num_ranks": "two"}, "num_ranks"),
        ({"num_ranks": 3}, "num_ranks: got 3; accepted: a divisor of the 4 slots"),
        ({"slots_per_rank": 7}, "slots_per_rank: got 7; accepted: 2"),
        ({"physical_to_logical": [[0, 1, 2, 0], [0, 1, 2]]}, r"rows of lengths \[3, 4\]"),
        ({"physical_to_logical": [[0, 1, 2, 0], [0, 1, 1, 1]]}, "layer 1 has no slot for expert 2"),
        ({"physical_to_logical": [[0, 1, 2, 0], [0, 1, 2, 1.5]]}, "physical_to_logical.1.3: got 1.5"),
        ({"physical_to_logical": [[0, 1, 2, True], [0, 1, 2, 1]]}, "physical_to_logical.0.3"),
        ({"split": [[1, 1, 1, 1], [1, 1, 1, 1]]}, "layer 0 expert 0 sum to 2"),
        ({"layer_indices": [4, 1]}, r"layer_indices: got \[4, 1\]"),
        ({"schema_version": 2}, "schema_version"),
    ],
)
def test_bad_files(tmp_path, fields, text):
    with pytest.raises(InputError, match=text) as caught:
        read_placement(changed(tmp_path, **fields))
    assert "p.json" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("[1, 2]", "not a placement file"),
        ('{"kind": 1, "kind": 2}', "key 'kind' appears twice"),
        ('{\n"kind": }', r"p.json:2: not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_not_even_json(tmp_path, content, text):
    path = tmp_path / "p.json"
    path.write_text(content)
    with pytest.raises(InputError, match=text):
        read_placement(path)


def test_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        read_placement(tmp_path / "none.json")


def test_same_bytes_in_two_processes():
    code = (
        "import sys, numpy as np\n"
        "from moesim.placement import Problem, placement_methods\n"
        "from moesim.placement.store import StoredPlacement, to_text\n"
        "loads = np.floor(1000 * np.exp(0.4 * np.random.default_rng(3).normal(size=(1, 16))))\n"
        "ilp = placement_methods.build('ilp', {'gap_fraction': 0.0, 'rounds': 3, 'max_nodes': 1})\n"
        "solution = ilp.solve(Problem.with_redundancy(loads, 4, 0), np.random.default_rng(0))\n"
        "sys.stdout.write(to_text(StoredPlacement(solution.placement, 'm', (0,))))\n"
        "sys.stdout.write(repr((solution.lower_bound.tolist(), solution.notes)))\n"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(texts) == 1
    assert "moesim_placement" in texts.pop()
