"""Routing of a training step: texts of a microbatch, recorded traces."""

from copy import deepcopy

import numpy as np
import pytest
from trace_samples import trace_of

from moesim.files import Tree
from moesim.model import from_hf
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.training import build_training, train_plan
from moesim.scenario.training_routing import Windows, evened, shares_under
from moesim.traces import write_trace

TREE = {
    "schema_version": 1,
    "name": "small",
    "question": "train_step",
    "model": {"name": "qwen3_30b_a3b", "num_hidden_layers": 2},
    "cluster": "h100_x16",
    "plan": {"ep": 8},
    "routing": {"generator": "fitted_skew", "num_batches": 64},
    "training": {"global_batch_size": 32, "micro_batch_size": 1},
}


def resolved(*sets, routing=None):
    tree = deepcopy(TREE) | ({"routing": routing} if routing else {})
    return resolve_tree(Tree(tree, source="test"), list(sets))


def spread_of(windows, *sets):
    """Standard deviation over draws of an expert's share, over its mean."""
    found = resolved(*sets)
    model = from_hf(found.tree.sub("model"), found.model_name)
    plan = train_plan(found.scenario.plan, found.scenario.cluster)
    drawn = shares_under(windows, found.scenario, model, plan)
    return (drawn.std(axis=0) / drawn.mean(axis=0)).mean()


def test_more_texts_in_a_sequence_even_out_draws():
    counts = np.random.default_rng(0).integers(10, 100, size=(40, 2, 128))
    windows = Windows(counts)
    whole = spread_of(windows)
    assert spread_of(windows, "training.text_tokens=4096") == whole
    assert spread_of(windows, "training.text_tokens=256") == pytest.approx(whole / 4, rel=0.1)


def test_microbatches_are_drawn_from_a_recorded_trace(tmp_path):
    rng = np.random.default_rng(0)
    hot = np.concatenate([rng.permuted(np.tile(np.arange(16), (4000, 2, 1)), axis=-1)[..., :7],
                          np.full((4000, 2, 1), 127)], axis=-1)  # fmt: skip
    path = tmp_path / "hot.safetensors"
    write_trace(path, trace_of(hot, experts=128))
    shares = build_training(resolved(routing={"trace": str(path)})).setup.work.shares
    assert shares[..., 127] == pytest.approx(1 / 8)
    assert shares[..., :16] == pytest.approx(7 / 8 / 16, rel=0.1)
    assert not shares[..., 16:127].any()


def test_steered_experts_are_even_in_sum_and_uneven_by_text():
    rng = np.random.default_rng(0)
    counts = rng.gamma(2.0, 10.0, size=(8, 3, 64)) * np.linspace(0.2, 3.0, 64)
    counts[:, 1, 5] = 0.0
    found = evened(counts)
    total = found.sum(axis=0)
    assert total[[0, 2]] == pytest.approx(
        np.broadcast_to(counts.sum(axis=0)[[0, 2]].mean(1, keepdims=True), (2, 64))
    )
    assert not found[:, 1, 5].any()
    assert (found.std(axis=0)[0] > 0).all()


def test_steering_takes_the_skew_out_of_a_step():
    skewed, even = (
        build_training(resolved(*sets)).setup.work.shares for sets in ((), ("training.steered=true",))
    )
    assert even.max(axis=-1).mean() < 0.6 * skewed.max(axis=-1).mean()
    assert even.sum(axis=-1) == pytest.approx(1.0)
