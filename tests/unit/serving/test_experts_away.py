"""Services whose experts do not all fit on the device."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InfeasibleError, InputError
from moesim.scenario.resolve import resolve
from moesim.scenario.serve import run_serving
from moesim.scenario.serving import build_serving
from moesim.serving.step_times import StepShape

NAME = "qwen3_30b_serve_rtx4090_cached_experts"
SMALL = [
    "model=gpt_oss_20b",
    "routing={trace: tiny_olmoe, repeat_layers: true}",
    "memory.cache.slots_per_layer=12",
    "engine.max_num_batched_tokens=64",
    "engine.max_num_seqs=4",
    "workload.input_tokens=60",
    "workload.output_tokens=20",
    "workload.num_requests=8",
    "serving.band_runs=2",
]


@pytest.fixture(scope="module")
def built():
    return build_serving(resolve(NAME, SMALL))


def decodes(batch):
    return StepShape.of(num_decodes=batch, decode_context_tokens=np.asarray(batch) * 100.0)


def test_an_iteration_waits_for_what_is_not_there(built):
    deployment = built.pools[0].deployment
    away, none = deployment.away, replace(deployment, away=None)
    assert 12 / 32 < away.hit_fraction[-1] < away.hit_fraction[0] < 1
    shapes = decodes([[1.0], [4.0]])
    with_misses, without = (d.step_times("exact").seconds(shapes) for d in (deployment, none))
    assert with_misses - without == pytest.approx(away.decode_s[:2])
    terms = {term.label: term for term in deployment.step_times("exact").terms(shapes)}
    assert terms["experts outside the device"].grade == "assumed"
    assert terms["experts outside the device"].seconds == pytest.approx(away.decode_s[:2])


def test_weights_that_are_elsewhere_leave_room_for_the_cache(built):
    deployment = built.pools[0].deployment
    assert deployment.cache_tokens() > 2000
    with pytest.raises(InfeasibleError, match="weights and buffers need"):
        replace(deployment, away=None).cache_tokens()


def test_fewer_experts_on_the_device_take_longer_and_leave_more_cache(built):
    many = built.pools[0]
    few = build_serving(resolve(NAME, [*SMALL, "memory.cache.slots_per_layer=6"])).pools[0]
    assert (few.deployment.away.decode_s > many.deployment.away.decode_s).all()
    assert few.engine.num_blocks > many.engine.num_blocks


def test_such_a_service_is_played(built):
    done = run_serving(resolve(NAME, SMALL), with_changes=False).result
    assert 0 < done.metrics["expert_hit_fraction"].value < 1
    assert done.breakdown[0].name == "experts outside the device"
    assert done.memory["per_rank"][0]["free_bytes"] > 0


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("memory={cache: {policy: lru}}", "slots_per_layer: missing"),
        ("serving.instances=2", "for one instance on one device"),
        ("executor.attention=cpu", "executor.attention: got 'cpu'"),
    ],
)
def test_what_is_not_simulated_is_told(change, told):
    with pytest.raises(InputError, match=told):
        build_serving(resolve(NAME, [*SMALL, change]))
