"""Passes of a chunk: sums without overlap, bounds with it, recomputation, host and draws."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.hardware.load import load_cluster
from moesim.kernels.cost import FixedCost
from moesim.model import Dtypes
from moesim.model.load import load
from moesim.network.fabric import Communication, Fabric
from moesim.parallel.train_plan import TrainPlan
from moesim.training.backward import TrainCost
from moesim.training.blocks import LaunchCost
from moesim.training.chunks import ChunkTimes
from moesim.training.items import Link, Options, TrainBatch
from moesim.training.loads import balanced
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import Pass
from moesim.training.work import LayerWork

CLUSTER = load_cluster("h100_x16")
MODEL = load("qwen3_30b_a3b")
UNIT_S = 1e-3


def work(plan=None, *, shares=None, options=None, cost=None):
    plan = plan or TrainPlan(dp=16, ep=16)
    fabric = Fabric.of(CLUSTER, 16, Communication(deduplicate="node"))
    shares = balanced(len(MODEL.moe_layers), MODEL.num_experts) if shares is None else shares
    return LayerWork(
        MODEL,
        plan,
        Dtypes(),
        TrainBatch(1, 4096),
        TrainCost(cost or FixedCost(UNIT_S)),
        fabric,
        shares,
        options or Options(deduplicate="node"),
        CLUSTER.node.device.num_units,
    )


def times(layer_work, recompute=None, host=None):
    return ChunkTimes(layer_work, recompute or Recompute(), host or LaunchCost(0.0))


def seconds(chunks, kind, layers=(3, 4), **ends):
    segments = chunks.segments(layers, first=False, last=False, **ends)
    other = segments if kind is Pass.PAIR else ()
    return chunks.seconds(chunks.program(segments, kind, other))


def test_whole_backward_is_both_gradients_and_a_pair_hides_exchanges():
    chunks = times(work())
    forward, backward, of_input, of_weight, pair = (
        float(seconds(chunks, kind)[0, 0])
        for kind in (Pass.FORWARD, Pass.BACKWARD, Pass.INPUT_GRADIENT, Pass.WEIGHT_GRADIENT, Pass.PAIR)
    )
    assert backward == pytest.approx(of_input + of_weight, rel=1e-9)
    exchanges = sum(
        float(np.max(item.forward.estimate.seconds))
        for item in chunks.work.layer(3)
        if isinstance(item, Link)
    )
    compute = forward + backward - 4 * exchanges
    assert compute <= pair < forward + backward


def test_passes_of_equal_layers_add_up():
    chunks = times(work())
    one, three = (float(seconds(chunks, Pass.FORWARD, layers)[0, 0]) for layers in ((3,), (3, 4, 5)))
    assert three == pytest.approx(3 * one, rel=1e-9)


def test_the_slowest_member_of_each_draw_counts():
    shares = balanced(len(MODEL.moe_layers), MODEL.num_experts).repeat(2, axis=0)
    shares[1, :, :8] *= 3  # the experts of the first rank
    shares[1] /= shares[1].sum(-1, keepdims=True)

    class ByRows(FixedCost):
        def experts(self, op, load):
            return replace(super().experts(op, load), seconds=load.rows * 1e-6)

    found = seconds(times(work(shares=shares, cost=ByRows(UNIT_S))), Pass.FORWARD)
    assert found.shape == (1, 2)
    assert found[0, 1] > 1.5 * found[0, 0]


@pytest.mark.parametrize(
    ("policy", "extra_ops"),
    [
        (Recompute("selective", ("core_attn",)), 1),
        # the norm before the router; that before queries, keys and values is one with their product
        (Recompute("selective", ("layernorm",)), 1),
        (Recompute("selective", ("moe_act",)), 1),
    ],
)
def test_recomputed_work_is_added_to_the_backward(policy, extra_ops):
    layers = (3, 4)
    plain = float(seconds(times(work()), Pass.BACKWARD, layers)[0, 0])
    again = float(seconds(times(work(), policy), Pass.BACKWARD, layers)[0, 0])
    assert again - plain == pytest.approx(len(layers) * extra_ops * UNIT_S, rel=1e-9)


def test_full_recomputation_adds_a_forward_pass_of_the_layers_that_it_covers():
    plain = times(work())
    forward, backward = (float(seconds(plain, kind)[0, 0]) for kind in (Pass.FORWARD, Pass.BACKWARD))
    whole = float(seconds(times(work(), Recompute("full")), Pass.BACKWARD)[0, 0])
    first = float(seconds(times(work(), Recompute("full", method="block")), Pass.BACKWARD)[0, 0])
    assert whole == pytest.approx(forward + backward, rel=1e-9)
    assert first == pytest.approx(forward / 2 + backward, rel=1e-9)


def test_a_slow_host_bounds_a_pass():
    chunks = times(work(), host=LaunchCost(0.1))
    launches = 0.1 * sum(len(i.work) for i in chunks.work.layer(3) if not isinstance(i, Link))
    assert float(seconds(chunks, Pass.FORWARD, (3,))[0, 0]) >= launches


def test_delayed_weight_gradients_run_beside_the_exchange():
    eager = float(seconds(times(work()), Pass.BACKWARD)[0, 0])
    options = Options(deduplicate="node", delayed_weight_gradient=True)
    delayed = float(seconds(times(work(options=options)), Pass.BACKWARD)[0, 0])
    assert delayed < eager
    split = [float(seconds(times(work()), k)[0, 0]) for k in (Pass.INPUT_GRADIENT, Pass.WEIGHT_GRADIENT)]
    assert delayed >= split[0]


def test_delayed_weight_gradients_lengthen_no_pair():
    options = Options(deduplicate="node")
    delayed = replace(options, delayed_weight_gradient=True)
    for host in (LaunchCost(0.0), LaunchCost(2e-4)):
        eager, late = (
            float(seconds(times(work(options=one), host=host), Pass.PAIR, (3,))[0, 0])
            for one in (options, delayed)
        )
        assert late <= eager


def test_tensor_parallel_parts_are_gathered_and_scattered_among_themselves():
    plan = TrainPlan(tp=2, dp=8, ep=16)
    items = work(plan).layer(3)
    assert float(seconds(times(work(plan)), Pass.BACKWARD, (3,))[0, 0]) > 0
    small = [i for i in items if isinstance(i, Link) and not i.everybody]
    assert [i.forward.kind for i in small] == ["all_gather", "reduce_scatter"]
    assert [i.backward.kind for i in small] == ["reduce_scatter", "all_gather"]


def test_in_pairs_only_exchanges_of_the_whole_group_are_hidden():
    """What tensor-parallel ranks exchange is part of the work: a pair is no shorter than all of that."""
    plan = TrainPlan(tp=2, dp=8, ep=16)
    chunks = times(work(plan))
    items = chunks.work.layer(3)
    small_s = 2 * sum(
        float(np.max(i.forward.estimate.seconds)) for i in items if isinstance(i, Link) and not i.everybody
    )
    pieces_s = UNIT_S * sum(
        2 + (w.passes.weight_gradient is not None) for i in items if not isinstance(i, Link) for w in i.work
    )
    assert float(seconds(chunks, Pass.PAIR, (3,))[0, 0]) >= pieces_s + small_s


def test_in_pairs_the_host_waits_for_counts():
    waits = Options(deduplicate="node", host_reads_counts=True)
    knows = Options(deduplicate="node", host_reads_counts=False)
    paired = [
        float(seconds(times(work(options=o), host=LaunchCost(5e-4)), Pass.PAIR)[0, 0]) for o in (waits, knows)
    ]
    assert paired[0] > paired[1]
