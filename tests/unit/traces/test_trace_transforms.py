"""Dynamic routing: every transform by hand or by the law it must keep."""

import numpy as np
import pytest
from trace_samples import small_trace, trace_of
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.traces import read_trace, write_trace
from moesim.traces.store import verify_trace
from moesim.traces.transforms import transforms

PARAMS = {
    "null_experts": {"num_null": 3},
    "skip_domain": {"domain": "code"},
    "first_choices": {"top_k": 1},
    "group_limited": {"num_groups": 4, "top_groups": 2},
    "prune_experts": {"keep": 5},
}


def applied(name, trace, **params):
    made = transforms.build(name, params or PARAMS.get(name, {})).apply(trace, np.random.default_rng(0))
    verify_trace(made)
    return made


def weighted(ids, weights, experts=8):
    from dataclasses import replace

    trace = trace_of(ids, experts)
    return replace(trace, gate_weights=np.array(weights, np.float16))


@pytest.mark.parametrize("name", transforms.names())
@pytest.mark.parametrize("empty", [0.0, 0.3])
def test_every_transform_gives_a_valid_assumed_trace(name, empty):
    trace = small_trace(tokens=120, top_k=3, empty=empty)
    before = trace.expert_ids.copy()
    made = applied(name, trace)
    assert made.num_tokens == trace.num_tokens
    assert made.info.evidence == "assumed"
    assert made.info.source.startswith("test; ")
    assert np.array_equal(trace.expert_ids, before)
    again = applied(name, trace)
    assert np.array_equal(made.expert_ids, again.expert_ids)
    if name not in ("expert_choice", "first_choices"):
        assert (made.expert_ids[trace.expert_ids == trace.empty_slot] == made.empty_slot).all()


def test_top_p_by_hand():
    trace = weighted([[[0, 1, 2]], [[3, 4, 5]]], [[[0.5, 0.25, 0.125]], [[0.125, 0.75, 0.125]]])
    made = applied("top_p", trace, mass=0.6)
    assert made.expert_ids.tolist() == [[[0, 1, 255]], [[255, 4, 255]]]
    assert applied("top_p", trace, mass=1.0).expert_ids.tolist() == trace.expert_ids.tolist()


def test_skipping_by_hand():
    trace = weighted([[[0, 1, 2]]], [[[0.5, 0.25, 0.125]]])
    assert applied("skip_threshold", trace, ratio=0.4).expert_ids.tolist() == [[[0, 1, 255]]]
    assert applied("first_choices", trace, top_k=2).expert_ids.tolist() == [[[0, 1]]]
    for name in ("top_p", "skip_threshold"):
        with pytest.raises(InputError, match="the trace has none"):
            applied(name, trace_of([[[0, 1]]], 4))


def test_null_experts_leave_the_model():
    made = applied("null_experts", trace_of([[[0, 7]], [[6, 2]]], 8), num_null=2)
    assert made.num_experts == 6
    assert made.expert_ids.tolist() == [[[0, 255]], [[255, 2]]]
    with pytest.raises(InputError, match="1 to 6"):
        applied("null_experts", trace_of([[[0, 7]]], 8), num_null=7)


def test_a_domain_uses_fewer():
    trace = small_trace(top_k=3)
    made = applied("skip_domain", trace, domain="code", keep=2)
    code = trace.domain_index == 1
    assert ((made.expert_ids == 255).sum(axis=-1) == np.where(code, 1, 0)[:, None]).all()


def test_capacity_drops_towards_the_end():
    from dataclasses import replace

    trace = trace_of([[[0]], [[0]], [[0]], [[1]]], 2)
    one_step = replace(trace, step_index=np.zeros(4, np.int32))
    # room for two choices an expert: the third that wants expert 0 is dropped
    assert applied("capacity", one_step, factor=1.0).expert_ids.ravel().tolist() == [0, 0, 255, 1]
    heavy = replace(one_step, gate_weights=np.array([0.1, 0.5, 0.9, 0.2], np.float16)[:, None, None])
    by_weight = applied("capacity", heavy, factor=1.0, order="weight")
    assert by_weight.expert_ids.ravel().tolist() == [255, 0, 0, 1]


@pytest.mark.parametrize("order", ["position", "random", "weight"])
def test_capacity_is_never_exceeded_and_never_wasted(order):
    trace = small_trace(tokens=200, requests=10, top_k=3)
    made = applied("capacity", trace, factor=0.8, order=order)
    for step in np.unique(trace.step_index):
        rows = trace.step_index == step
        room = int(np.ceil(0.8 * rows.sum() * 3 / 8))
        wanted, served = trace.take(rows).counts(), made.take(rows).counts()
        assert np.array_equal(served, np.minimum(wanted, room))


def test_groups_are_limited_and_allowed_choices_stay():
    trace = small_trace(tokens=200, experts=16, top_k=4)
    made = applied("group_limited", trace, num_groups=4, top_groups=2)
    groups = made.expert_ids // 4
    assert max(len(set(row.tolist())) for row in groups.reshape(-1, 4)) <= 2
    assert (made.expert_ids < 16).all()
    whole = applied("group_limited", trace, num_groups=4, top_groups=4)
    assert np.array_equal(whole.expert_ids, trace.expert_ids)
    with pytest.raises(InputError, match="divisor of 16"):
        applied("group_limited", trace, num_groups=3, top_groups=2)


def test_pruned_experts_are_gone():
    trace = small_trace(tokens=200)
    for refill in (True, False):
        made = applied("prune_experts", trace, keep=5, domain="prose", refill=refill)
        assert ((made.counts() > 0).sum(axis=1) <= 5).all()
        assert bool((made.expert_ids == 255).any()) is not refill
    with pytest.raises(InputError, match="2 to 8"):
        applied("prune_experts", trace, keep=1)


def test_expert_choice_gives_equal_loads():
    trace = small_trace(tokens=240, requests=12)
    made = applied("expert_choice", trace, factor=1.0)
    for step in np.unique(trace.step_index):
        rows = trace.step_index == step
        assert set(made.take(rows).counts().ravel().tolist()) == {int(np.ceil(rows.sum() * 2 / 8))}
    kept = (made.expert_ids[..., :, None] == trace.expert_ids[..., None, :]).any(axis=-2).mean()
    assert kept > 0.6


def test_command(tmp_path):
    path = write_trace(tmp_path / "t.safetensors", small_trace())
    out = tmp_path / "o.safetensors"
    run = ["trace", "transform", "capacity", str(path), "--param", "factor=0.5", "--out", str(out)]
    assert CliRunner().invoke(app, run).exit_code == 0
    assert (read_trace(out).expert_ids == 255).any()
    listed = CliRunner().invoke(app, ["policies", "trace_transform"])
    assert "expert_choice" in listed.stdout
    assert "vllm" in CliRunner().invoke(app, ["policies", "trace_format"]).stdout
