"""Published training steps: every row can be laid out, and its numbers agree with one another."""

from __future__ import annotations

import pytest

from moesim.errors import InputError
from moesim.files import Tree
from moesim.hardware.load import load_cluster
from moesim.model.load import load
from moesim.parallel.train_plan import check
from moesim.validate.training_rows import Row, folding, pairs, parts_of, rows, rows_of

ROWS = rows()


@pytest.mark.parametrize("row", ROWS, ids=[row.id for row in ROWS])
def test_a_row_can_be_laid_out(row: Row) -> None:
    step, model = row.step, load(row.step.model)
    check(step.train_plan, model, load_cluster(step.cluster).num_devices)
    assert step.train_plan.num_devices == step.num_devices
    assert step.global_batch % (step.train_plan.dp * step.micro_batch) == 0
    assert step.kept.sharding
    assert step.policy is not None
    assert row.measured
    assert row.source
    if step.layout is not None:
        parts = parts_of(step.layout)
        assert len(parts) == step.plan.pp * step.plan.vpp
        assert sum(part.layers for part in parts) == model.num_layers
        assert sum(part.mtp_layers for part in parts) == step.mtp_layers
        assert parts[0].embedding
        assert parts[-1].head


def test_printed_rates_agree_with_printed_steps() -> None:
    for row in ROWS:
        if {"step_s", "tokens_per_s_per_device"} <= set(row.measured):
            rate = row.step.tokens / row.step.num_devices / row.measured["step_s"]
            assert rate == pytest.approx(row.measured["tokens_per_s_per_device"], rel=0.01), row.id


def test_pairs_share_model_and_machine() -> None:
    for pair, before, after in pairs():
        assert (before.step.model, before.step.cluster) == (after.step.model, after.step.cluster), pair.switch
        assert before.step != after.step


def test_the_folding_table_has_twenty_cells_on_whole_machines() -> None:
    table = folding()
    cells = [(model, cell) for model in table.models for cell in model.cells]
    assert len(cells) == 20
    assert sum(cell.mfu is None for _, cell in cells) == 2
    for model, cell in cells:
        assert cell.plan.on(model.num_devices).num_devices == model.num_devices
        assert cell.method in table.methods


def test_a_wrong_file_names_every_problem() -> None:
    step = {
        "name": "a",
        "model": "m",
        "cluster": "c",
        "num_devices": 2,
        "precision": "bf16",
        "global_batch": 4,
    }
    recipe = step | {"source": "known", "runs": [{"id": "x", "source": "other", "step_s": 1.0}] * 2}
    tree = {"sources": {"known": "paper"}, "recipes": [recipe], "not_modelled": []}
    with pytest.raises(InputError) as error:
        rows_of(Tree(tree, source="file.yaml"))
    assert "'other'" in str(error.value)
    assert "twice" in str(error.value)
    with pytest.raises(InputError, match="precison"):
        rows_of(Tree(tree | {"recipes": [recipe | {"precison": "bf16"}]}, source="file.yaml"))
    with pytest.raises(InputError, match="layout"):
        parts_of("Ex|tL")
