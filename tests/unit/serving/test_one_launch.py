from dataclasses import replace

import numpy as np
import pytest

from moesim.hardware import load_cluster
from moesim.model import load
from moesim.parallel.plan import Plan
from moesim.serving.checkpoints import stored_formats
from moesim.serving.deployment import Deployment
from moesim.serving.one_launch import OneLaunchAttention, Spread
from moesim.serving.profiles import load_profile
from moesim.serving.step_times import StepShape
from moesim.units import US

EVEN = Spread(np.ones(4))
UNEVEN = Spread(np.array([0.3, 0.3, 0.4, 3.0]))


def deployment(cluster="rtx_pro_6000_x1", model="llama_3_1_8b", engine="vllm", version="0.19.0", tp=1):
    formats = stored_formats(model, "bf16", "bf16")
    profile = load_profile(engine, version)
    return Deployment(load(model), Plan.of(tp, 1, 1, tp, 1), formats, load_cluster(cluster), profile)


@pytest.fixture(scope="module")
def launch():
    return OneLaunchAttention.of(deployment().costs)


@pytest.mark.parametrize(
    ("cluster", "engine"), [("h200_x8", "vllm"), ("b200_x8", "vllm"), ("rtx_pro_6000_x1", "sglang")]
)
def test_only_engines_that_run_such_a_kernel_pay_for_it(cluster, engine):
    version = {"vllm": "0.19.0", "sglang": "0.5.9"}[engine]
    assert OneLaunchAttention.of(deployment(cluster, engine=engine, version=version).costs) is None


MEASURED = {  # us a layer beside a prompt piece, less the same step alone
    (16, 923): (78, 55),
    (64, 1384): (373, 258),
    (128, 923): (584, 349),
    (128, 2076): (1558, 744),
    (128, 4671): (4869, 1633),
    (128, 16384): (21510, 5628),
}


@pytest.mark.parametrize("shape", list(MEASURED))
def test_a_step_beside_prompts_takes_what_was_measured(launch, shape):
    """LLMServingSim (MIT), profiler/perf/RTXPRO6000, attention.csv of Llama-3.1-8B; not fitted to it."""
    sequences, context = (np.array([float(n)]) for n in shape)
    layers = launch.costs.model.num_layers
    alone = sum(term.seconds[0] for term in launch.costs.decode(sequences, context, 1.0)) / layers
    beside = alone + launch.beside_prompts(sequences, context)[0] / layers
    measured_beside, measured_alone = (value * US for value in MEASURED[shape])
    assert alone == pytest.approx(measured_alone, rel=0.2)
    assert beside == pytest.approx(measured_beside, rel=0.27)


def test_caches_that_do_not_fit_the_last_level_cache_are_read_once_a_head(launch):
    short, long = (launch._reads(op) for op in _decodes(launch, np.array([64.0]), (100.0, 1e6)))
    assert short[0] == 1.0
    assert 3.9 < long[0] <= 4.0


def _decodes(launch, sequences, contexts):
    layer = launch._layers[0][0]
    op = launch._op(layer)
    return [replace(op, num_sequences=sequences, context_tokens=np.array([c])) for c in contexts]


def test_equal_caches_are_even_and_longer_ones_end_last(launch):
    batches = (1, 4, 40, 128, 4096)
    assert launch.uneven(batches, EVEN).tolist() == [1.0] * 5
    uneven = launch.uneven(batches, UNEVEN)
    assert uneven[0] == 1.0
    assert uneven[2] > 1.1
    assert uneven[4] == 1.0  # many rounds of tiles
    assert (uneven < 3.0).all()


def test_the_last_tile_ends_when_memory_or_its_own_rate_says_so(launch):
    slots, fastest = launch._slots, launch._fastest
    assert launch._end(np.ones(slots), 1, 1) == pytest.approx(1.0)
    assert launch._end(np.ones(1), 1, 1) == pytest.approx(1 / min(slots, fastest))
    long_one = np.ones(slots)
    long_one[0] = 5.0
    assert launch._end(long_one, 1, 1) == pytest.approx(1.0 + 4.0 / fastest)
    assert launch._end(np.ones(3 * slots), 1, 1) == pytest.approx(3.0)


def test_a_spread_weighs_requests_with_their_answers():
    same = Spread.of(np.full(10, 1000), np.full(10, 1))
    assert same.shares == pytest.approx(1.0, abs=2e-3)
    mixed = Spread.of(np.array([10, 10000]), np.array([999, 1]))
    assert np.median(mixed.shares) < 1.1
    assert mixed.shares.mean() == pytest.approx(1.0)


def test_an_iteration_with_prompts_pays_for_every_decode_and_each_empty_tile():
    times = deployment().step_times("exact")

    def seconds(decodes, prompt):
        shapes = StepShape.of(
            num_decodes=[[decodes]],
            decode_context_tokens=[[decodes * 1000.0]],
            prefill_tokens=[[prompt]],
            prefill_squares=[[prompt**2]],
            num_prefills=[[float(prompt > 0)]],
        )
        return times.seconds(shapes)[0]

    together, apart = seconds(64.0, 1024.0), seconds(64.0, 0.0) + seconds(0.0, 1024.0)
    launch = times.parts.launch
    added = times.parts.beside(np.array([[64.0]]), np.array([[1000.0]]))[0, 0]
    empty = launch.empty_s(np.array([64.0 * 15]))[0]
    weights = seconds(1.0, 0.0)  # read once instead of twice
    assert together == pytest.approx(apart + added + empty - weights, rel=0.08)
    assert added > empty > 0
