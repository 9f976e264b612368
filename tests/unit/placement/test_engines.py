import json

import numpy as np
import pytest
from ruamel.yaml import YAML

from moesim.errors import InputError
from moesim.placement import Placement, Problem, placement_methods
from moesim.placement.engine_files import About, formats, read_as, write_as
from moesim.placement.store import StoredPlacement, to_text

# two mixture-of-experts layers (model layers 1 and 3) of 4 experts, 6 slots on 3 ranks
PLACED = Placement([[0, 1, 2, 3, 0, 1], [0, 2, 0, 1, 0, 3]], 4, 3)
STORED = StoredPlacement(PLACED, "toy", (1, 3), "eplb", "toy traffic")
ABOUT = About(4, 3, (1, 3), "toy")
UNEVEN = Placement([[0, 1, 2, -1, 3, -1], [3, -1, 2, 1, 0, -1]], 4, 3)
RNG = np.random.default_rng(0)


def test_sglang_has_a_row_for_every_layer_and_no_other_key():
    made = write_as("sglang", STORED, 5)
    filler = [0, 1, 2, 3, 0, 1]
    assert json.loads(made.text) == {
        "physical_to_logical_map": [filler, [0, 1, 2, 3, 0, 1], filler, [0, 2, 0, 1, 0, 3], filler]
    }
    assert made.notes[0] == "start SGLang with --ep-size 3 --ep-num-redundant-experts 2"
    assert "3 of 5 rows" in made.notes[1]
    assert len(json.loads(write_as("sglang", STORED).text)["physical_to_logical_map"]) == 4


def test_sglang_round_trip(tmp_path):
    path = tmp_path / "s.json"
    path.write_text(write_as("sglang", STORED, 5).text)
    back = read_as("sglang", str(path), ABOUT)
    assert back.placement == PLACED
    assert back.layer_indices == (1, 3)
    assert write_as("sglang", back, 5).text == path.read_text()


@pytest.mark.parametrize("name", sorted({*formats.names()} - {"vllm"}))
def test_what_is_written_is_read_back(tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(write_as(name, STORED).content)
    back = read_as(name, str(path), ABOUT)
    assert back.placement == PLACED
    assert write_as(name, back).content == path.read_bytes() or name == "moesim"


@pytest.mark.parametrize("name", ["vllm-ascend", "omni", "moesim"])
def test_unequal_slots_are_kept(tmp_path, name):
    uneven = StoredPlacement(UNEVEN, "toy", (1, 3))
    path = tmp_path / "file"
    path.write_bytes(write_as(name, uneven).content)
    assert read_as(name, str(path), ABOUT).placement == UNEVEN


@pytest.mark.parametrize("name", ["sglang", "trtllm"])
def test_unequal_slots_are_refused(name):
    with pytest.raises(InputError, match="got 1 to 2 slots"):
        write_as(name, StoredPlacement(UNEVEN, "toy", (1, 3)))


def test_vllm_files_hold_no_placement(tmp_path):
    path = tmp_path / "v.json"
    path.write_text("{}")
    with pytest.raises(InputError, match="holds no placement"):
        read_as("vllm", str(path), ABOUT)


def test_omni_tells_what_it_cannot_hold():
    twice = StoredPlacement(Placement([[0, 0, 1, 2]], 3, 2), "toy", (0,))
    assert "1 second copies" in write_as("omni", twice).notes[0]


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("trtllm", "num_slots: 6\ninitial_global_assignments: {1: [0, 1]}\n", "accepted: 1, 3"),
        ("trtllm", "num_slots: 6\nother: 1\n", "mapping of layer numbers"),
        ("trtllm", "num_slots: 5\ninitial_global_assignments: {1: [0], 3: [1]}\n", "num_slots: got 5"),
        ("vllm-ascend", '{"moe_layer_count": 1, "layer_list": []}', "its length as moe_layer_count"),
        ("vllm-ascend", '{"moe_layer_count": 2, "layer_list": [{}, {}]}', "device_list"),
        ("omni", "no array", "not a .npy array"),
        ("moesim", "{}", "not a placement file"),
    ],
)
def test_bad_engine_files(tmp_path, name, content, text):
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InputError, match=text):
        read_as(name, str(path), ABOUT)


def test_a_placement_of_another_shape_is_refused(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(to_text(STORED))
    with pytest.raises(InputError, match=r"num_ranks: got 3; accepted: 2"):
        read_as("moesim", str(path), About(4, 2, (1, 3)))


@pytest.mark.parametrize(
    ("content", "layers", "text"),
    [
        ('{"logical_count": [[1, 2]]}', (0,), "balances these itself"),
        ('{"physical_to_logical_map": [[0, 1]], "x": 1}', (0,), "only key"),
        ('{"physical_to_logical_map": [[0, "1"]]}', (0,), "whole numbers"),
        ('{"physical_to_logical_map": [[0, 1], [0]]}', (0,), r"lengths \[1, 2\]"),
        ('{"physical_to_logical_map": [[0, 1]]}', (1,), "accepted: 0 to 0"),
        ('{"physical_to_logical_map": [[0, 0]]}', (0,), "layer 0 has no slot for expert 1"),
    ],
)
def test_bad_sglang_files(tmp_path, content, layers, text):
    path = tmp_path / "s.json"
    path.write_text(content)
    with pytest.raises(InputError, match=text):
        read_as("sglang", str(path), About(2, 2, layers))


def test_tensorrt_llm_numbers_layers_as_the_model():
    text = write_as("trtllm", STORED).text
    assert YAML(typ="safe").load(text) == {
        "num_slots": 6,
        "initial_global_assignments": {1: [0, 1, 2, 3, 0, 1], 3: [0, 2, 0, 1, 0, 3]},
        "layer_updates_per_iter": 0,
    }


def test_vllm_ascend_counts_expert_layers_only():
    document = json.loads(write_as("vllm-ascend", STORED).text)
    assert document["moe_layer_count"] == 2
    assert [layer["layer_id"] for layer in document["layer_list"]] == [0, 1]
    assert document["layer_list"][1] == {
        "layer_id": 1,
        "device_count": 3,
        "device_list": [
            {"device_id": 0, "device_expert": [0, 2]},
            {"device_id": 1, "device_expert": [0, 1]},
            {"device_id": 2, "device_expert": [0, 3]},
        ],
    }


def test_vllm_says_that_it_loads_no_placement():
    made = write_as("vllm", STORED)
    assert json.loads(made.text)["num_redundant_experts"] == 2
    assert "no static placement input" in made.notes[0]
    assert len(made.notes) == 1


@pytest.mark.parametrize("name", ["linear", "round_robin"])
def test_vllm_names_the_stock_strategy(name):
    placed = placement_methods.build(name).solve(Problem(np.ones((2, 8)), 4, 2), RNG).placement
    made = write_as("vllm", StoredPlacement(placed, "toy", (0, 1)))
    assert f"--expert-placement-strategy {name} " in made.notes[1]


def test_every_format_keeps_every_slot():
    """Slots read back from each format that holds a placement are the slots written."""
    want = PLACED.physical_to_logical.tolist()
    assert json.loads(write_as("moesim", STORED).text)["physical_to_logical"] == want
    ascend = json.loads(write_as("vllm-ascend", STORED).text)["layer_list"]
    assert [sum((d["device_expert"] for d in layer["device_list"]), []) for layer in ascend] == want
    trt = YAML(typ="safe").load(write_as("trtllm", STORED).text)["initial_global_assignments"]
    assert list(trt.values()) == want


def test_shares_are_lost_with_a_note():
    split = Placement([[0, 1, 2, 0]], 3, 2, split=[[0.3, 1.0, 1.0, 0.7]])
    stored = StoredPlacement(split, "toy", (0,))
    for name in formats.names():
        has_note = any("shares of copies" in note for note in write_as(name, stored).notes)
        assert has_note == (name != "moesim")
    assert write_as("moesim", stored).text == to_text(stored)


def test_refusals():
    with pytest.raises(InputError, match="known: moesim, omni, sglang, trtllm, vllm, vllm-ascend"):
        write_as("csv", STORED)
    with pytest.raises(InputError, match="at least 4: layer 3 is placed"):
        write_as("sglang", STORED, 3)
    with pytest.raises(InputError, match="layer_indices"):
        StoredPlacement(PLACED, "toy", (3, 1))
