import numpy as np
import pytest

from moesim.engine import vector
from moesim.engine.durations import durations_ps
from moesim.engine.program import Program
from moesim.hardware import load_cluster
from moesim.kernels.cost import RooflineCost
from moesim.model import Dtypes, load
from moesim.model.ops import Segment
from moesim.network.fabric import Fabric
from moesim.parallel.plan import Plan
from moesim.serving.checkpoints import stored_formats
from moesim.serving.deployment import Deployment
from moesim.serving.expert_draws import ExpertDraws, Generator
from moesim.serving.profiles import Kernels, load_profile
from moesim.serving.step_costs import StepCosts, total
from moesim.serving.step_times import StepShape
from moesim.steps.block import STREAMS
from moesim.steps.layers import Lane, Stage, StageBuilder
from moesim.steps.overlap import overlap_policies
from moesim.units import PS_PER_S, US

PLAIN = Kernels(fits="default", small_kernel_s=2.5 * US)


def deployment(model="deepseek_r1", engine="vllm", version="0.15.1", tp=8, dp=1, ep=1, label="fp8"):
    plan = Plan.of(tp, 1, dp, ep, tp * dp // ep)
    formats = stored_formats(model, label, label)
    return Deployment(load(model), plan, formats, load_cluster("h200_x8"), load_profile(engine, version))


@pytest.mark.parametrize("tokens", [1, 7, 64])
def test_parts_of_a_dense_step_are_those_of_the_step_program(tokens):
    """Independent assembly: the stage builder lays the same operations out as a stream program."""
    model, plan, dtypes = load("llama_3_1_8b"), Plan.of(2, 1, 1, 2, 1), Dtypes()
    cluster = load_cluster("h100_x8")
    cost, fabric = RooflineCost(cluster.node.device), Fabric.of(cluster, 2)
    costs = StepCosts(model, plan, dtypes, cost, fabric, PLAIN)
    n, context = np.array([float(tokens)]), np.array([900.0])
    parts = (costs.by_tokens(n, graph_tokens=512), costs.decode(n, context, 1.0), costs.head(n))
    stage = Stage(0, plan.stage_ranks(0), 2, 2, 1, 1, tuple(range(model.num_layers)), True, True)
    builder = StageBuilder(model, stage, dtypes, "bf16", cost, fabric, 2, 0)
    blocks = builder.blocks(Lane((Segment.decode(float(tokens), 900.0),), None))
    program = Program(2, STREAMS, tuple(overlap_policies.build("none").weave([blocks], None)))
    makespan = vector.run(vector.compile(program), durations_ps(program)).makespan_ps[0] / PS_PER_S
    # the program ends where an engine gathers the logits that it samples from
    ours = [term for part in parts for term in part if term.label != "logits"]
    assert total(ours)[0] == pytest.approx(makespan, rel=1e-6)


def test_tables_agree_with_what_they_were_filled_from():
    service = deployment()
    rng = np.random.default_rng(1)
    decodes = rng.integers(1, 300, 40).astype(float)
    prompt = np.where(rng.random(40) < 0.5, 0.0, rng.integers(50, 8000, 40)).astype(float)
    shapes = StepShape.of(
        num_decodes=decodes[:, None],
        decode_context_tokens=(decodes * rng.integers(100, 9000, 40))[:, None],
        prefill_tokens=prompt[:, None],
        prefill_squares=(prompt**2)[:, None],
        num_prefills=(prompt > 0)[:, None],
    )
    exact, table = (service.step_times(tier).seconds(shapes) for tier in ("exact", "table"))
    error = np.abs(table / exact - 1)
    assert np.median(error) < 0.02
    assert error.max() < 0.12


def test_a_sample_costs_the_same_alone_and_among_others():
    times = deployment(tp=1, dp=8, ep=8).step_times()
    decodes = np.array([[4.0] * 8, [40.0] * 8, [1.0] * 8])
    shapes = StepShape.of(num_decodes=decodes, decode_context_tokens=decodes * 1000)
    together = times.seconds(shapes)
    alone = [times.seconds(shapes.take(slice(i, i + 1)))[0] for i in range(3)]
    assert together.tolist() == alone
    assert (np.diff(together[[2, 0, 1]]) > 0).all()


def test_an_idle_rank_waits_for_the_busiest():
    times = deployment(tp=1, dp=8, ep=8).step_times()
    one = np.zeros((1, 8))
    one[0, 3] = 32.0
    shapes = StepShape.of(num_decodes=one, decode_context_tokens=one * 4000)
    all_alike = StepShape.of(num_decodes=np.full((1, 8), 32.0), decode_context_tokens=32 * 4000.0)
    assert 0 < times.seconds(shapes)[0] < times.seconds(all_alike)[0]


def test_more_tokens_touch_more_experts_and_no_expert_twice():
    moe = load("qwen3_30b_a3b").layers[0].moe
    draws = ExpertDraws(moe, Plan.of(4, 1, 1, 4, 1), np.zeros(4, dtype=np.int64), Generator("uniform"))
    load_of = draws.loads(np.array([1.0, 16.0, 256.0, 20000.0]))
    per_layer = load_of.touched.sum(axis=1)
    assert (per_layer[:, 0] == moe.top_k).all()
    assert (np.diff(per_layer.mean(axis=0)) >= 0).all()
    assert per_layer[:, 0].max() < per_layer[:, 1].min()
    assert per_layer.max() <= moe.num_experts
    assert load_of.rows.sum(axis=1).mean(axis=0)[:3] == pytest.approx(np.array([1, 16, 256]) * moe.top_k)
    assert load_of.rows.sum(axis=1).mean(axis=0)[3] == pytest.approx(20000 * moe.top_k, rel=0.01)


def test_uniform_draws_touch_what_theory_says():
    moe = load("qwen3_30b_a3b").layers[0].moe
    draws = ExpertDraws(moe, Plan.of(1), np.zeros(1, dtype=np.int64), Generator("uniform"))
    touched = draws.loads(np.array([32.0])).touched.mean()
    expected = moe.num_experts * (1 - (1 - moe.top_k / moe.num_experts) ** 32)
    assert touched == pytest.approx(expected, rel=0.03)


def test_speculation_costs_a_longer_step_and_gains_tokens():
    plain = deployment(engine="trtllm", version="1.2.0rc6.post2")
    drafting = deployment(engine="trtllm", version="1.2.0rc6.post3")
    assert (plain.drafts, drafting.drafts) == (0, 3)
    assert deployment("gpt_oss_120b", "trtllm", "1.2.0rc6.post3", tp=4).drafts == 0

    def step_s(service):
        shapes = StepShape.of(
            num_decodes=[[8.0]], decode_context_tokens=[[8000.0]], tokens_per_decode=1.0 + service.drafts
        )
        return service.step_times().seconds(shapes)[0]

    assert step_s(drafting) > step_s(plain)
    assert step_s(drafting) / drafting.tokens_per_step < step_s(plain)


def test_cache_is_what_the_weights_leave():
    small, large = deployment(tp=8), deployment("qwen3_32b", tp=8, label="bf16")
    assert 0 < small.cache_tokens() < large.cache_tokens()
    from moesim.errors import InfeasibleError

    with pytest.raises(InfeasibleError, match=r"need 6\d\d\.\d GB of each device"):
        deployment(tp=1).cache_tokens()


def test_small_batches_share_the_time_of_their_graph():
    times = deployment("llama_3_1_8b", tp=1, label="bf16").step_times()
    shapes = StepShape.of(num_decodes=[[17.0], [24.0], [25.0]], decode_context_tokens=[[0.0]] * 3)
    padded = times._padded(shapes)
    assert padded.tolist() == [[24.0], [24.0], [32.0]]


def test_a_pipeline_round_is_what_its_slowest_batch_needs_for_all_stages():
    def times(pp, num_devices):
        plan = Plan.of(2, pp, 1, 2, 1)
        formats = stored_formats("llama_3_1_8b", "fp8", "fp8")
        profile = load_profile("vllm", "0.15.1")
        one = Deployment(load("llama_3_1_8b"), plan, formats, load_cluster("h200_x8"), profile)
        return one, one.step_times("exact")

    (whole, alone), (split, piped) = times(1, 2), times(2, 4)
    assert (whole.num_ranks, split.num_ranks) == (1, 2)
    full = StepShape.of(
        num_decodes=[[16, 0], [16, 16], [3, 16]], decode_context_tokens=[[8e3, 0], [8e3, 8e3], [9, 8e3]]
    )
    seconds = piped.seconds(full)
    assert seconds == pytest.approx(seconds[0])
    one = alone.seconds(StepShape.of(num_decodes=[[16]], decode_context_tokens=[[8e3]]))[0]
    moved = [
        t for t in split.costs.by_tokens(np.array([16.0]), graph_tokens=512) if t.label == "between stages"
    ]
    assert seconds[0] == pytest.approx(one + moved[0].seconds[0])
    # each stage holds half of the layers, and its cache the sequences of two batches
    assert 1.5 < 2 * split.cache_tokens() / whole.cache_tokens() < 3
    assert split.sequence_limit == whole.sequence_limit // 2
