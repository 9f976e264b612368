"""Recipes of published steps as scenarios."""

from __future__ import annotations

import pytest

from moesim.files import Tree
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.training import train_plan
from moesim.validate.training_rows import Row, folding, rows
from moesim.validate.training_sets.steps import (
    _config,
    kendall_tau,
    predicted,
    routing_of,
    scenario_of,
    schedule_of,
)

FIRST_OF_RECIPE = list({row.step.name: row for row in rows()}.values())


@pytest.mark.parametrize("row", FIRST_OF_RECIPE, ids=[row.id for row in FIRST_OF_RECIPE])
def test_a_recipe_is_a_valid_scenario_with_its_plan(row: Row) -> None:
    scenario = resolve_tree(Tree(scenario_of(row.step), source="recipe")).scenario
    assert train_plan(scenario.plan, scenario.cluster) == row.step.train_plan
    section = scenario.training
    assert section.global_batch_size * section.sequence_length == row.step.tokens


def test_schedules_follow_chunks_and_overlap() -> None:
    found = {row.id: schedule_of(row.step) for row in rows()}
    assert found["dsv3_h800_2048"] == "dualpipe"
    assert found["dsv3_h100_1024_bf16"] == "interleaved"
    assert found["qwen3_30b_h100_16_overlap"] == "interleaved_pairs"
    assert found["gpt_oss_120b_h100_64_260401"] == "1f1b"


def test_trained_models_route_as_recorded_and_new_ones_as_nobody_knows() -> None:
    found = {row.id: routing_of(row.step) for row in rows()}
    assert found["qwen3_235b_h100_16k_natural"]["like"] == "qwen3_30b_a3b"
    assert found["mixtral_8x22b_h100_128_fp8"]["like"] == "mixtral_8x7b"
    assert found["qwen3_30b_h100_16_natural"]["generator"] == "fitted_skew"
    assert found["mixtral_8x22b_h100_128_forced"]["generator"] == "balanced"
    steered = [row.id for row in rows() if "steered" in scenario_of(row.step)["training"]]
    assert steered == ["dsv3_h800_2048"]


def test_a_small_step_is_predicted_once_and_agrees_with_itself() -> None:
    step = next(row.step for row in rows() if row.id == "llama3_8b_h100_8_2511")
    ours = predicted(step)
    assert predicted(step) is ours
    assert ours.tokens_per_s_per_device == pytest.approx(step.tokens / ours.step_s / step.num_devices)
    assert 0 < ours.tflops_per_device < 1979


def test_order_of_layouts() -> None:
    assert kendall_tau([1, 2, 3, 4], [10, 20, 30, 40]) == 1
    assert kendall_tau([1, 2, 3, 4], [40, 30, 20, 10]) == -1
    assert kendall_tau([0, 0, 1], [5, 9, 10]) == 1


def test_made_models_of_the_folding_table() -> None:
    made = {model.name: _config(model) for model in folding().models}
    fine = made["Mixtral-8x22B-G8T8"]
    assert (fine["num_local_experts"], fine["num_experts_per_tok"], fine["intermediate_size"]) == (
        64,
        8,
        2048,
    )
    assert made["Llama3-8x70B"]["hidden_size"] == 8192
    assert made["Mixtral-8x22B"] == "mixtral_8x22b"
