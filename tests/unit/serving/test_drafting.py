"""Drafts: how many tokens a step gains, against closed forms."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.scenario.from_command import scenario_of_command
from moesim.scenario.resolve import resolve
from moesim.scenario.serve import run_serving
from moesim.scenario.serving import build_serving
from moesim.serving.drafting import Drafting, most_spread
from moesim.serving.engine import Engine
from moesim.serving.iterations import Exact
from moesim.serving.policies import routers
from moesim.serving.service import InstanceSpec, Service
from moesim.serving.summary import latencies
from moesim.serving.workload import Workload

STEP_S = 0.01
ENGINE = Engine(num_blocks=10_000, max_num_batched_tokens=4096, max_num_seqs=64)
COMMAND = "vllm serve deepseek-ai/DeepSeek-R1 -tp 8"
SMALL = ["workload.num_requests=60", "serving.band_runs=2", "model=deepseek_r1"]


@dataclass(frozen=True)
class Constant:
    num_ranks: int = 1

    def seconds(self, shapes):
        return np.full(shapes.num_samples, STEP_S)

    def overhead(self, shapes):
        return np.zeros(shapes.num_samples)


def played(drafting, *, requests=40, tokens=400):
    engine = replace(ENGINE, drafting=drafting)
    full = np.full(requests, tokens)
    workload = Workload.of(np.arange(requests) * 20.0, full, full)
    spec = InstanceSpec(engine, Exact(Constant(), engine, float(engine.tokens_per_decode)))
    done = Service(workload, [spec], routers.build("round_robin")).run()
    return workload, done


@pytest.mark.parametrize(("tokens", "chance"), [(1, 0.85), (3, 0.62), (5, 0.0), (2, 1.0)])
def test_gains_of_a_step_are_a_cut_geometric_distribution(tokens, chance):
    drafting = Drafting(tokens, chance)
    gains = np.diff(drafting.gained(7, 200_000)) - 1
    expected = [chance**k * (1 - chance) for k in range(tokens)] + [chance**tokens]
    found = np.bincount(gains, minlength=tokens + 1) / len(gains)
    assert found == pytest.approx(expected, abs=0.005)
    whole = tokens + 1 if chance == 1 else (1 - chance ** (tokens + 1)) / (1 - chance)
    assert drafting.gain == pytest.approx(whole)
    assert gains.mean() + 1 == pytest.approx(drafting.gain, rel=0.01)


def test_requests_that_differ_gain_the_moments_of_their_distribution():
    drafting = Drafting(3, 0.6, 0.2)
    each = np.array([drafting.gained(request, 300)[-1] / 300 for request in range(2000)])
    assert each.mean() == pytest.approx(drafting.gain, rel=0.02)
    assert drafting.gain > Drafting(3, 0.6).gain  # powers are convex
    alike = np.array([Drafting(3, 0.6).gained(request, 300)[-1] / 300 for request in range(200)])
    assert each.std() > 4 * alike.std()
    # the density itself, integrated
    x = (np.arange(200_000) + 0.5) / 200_000
    size = 0.6 * 0.4 / 0.2**2 - 1
    density = x ** (0.6 * size - 1) * (1 - x) ** (0.4 * size - 1)
    moments = [(x**k * density).sum() / density.sum() for k in range(4)]
    assert drafting.gain == pytest.approx(sum(moments), rel=1e-4)


@pytest.mark.parametrize("drafting", [None, Drafting(3, 0.62), Drafting(1, 0.9)])
def test_time_per_token_is_a_step_over_its_gain(drafting):
    workload, done = played(drafting)
    gain = 1.0 if drafting is None else drafting.gain
    tpot = latencies(workload, done).tpot_s
    # what the last step gains beyond the answer is lost: less than a step in some 180
    assert tpot.mean() == pytest.approx(STEP_S / gain, rel=0.015)
    assert (tpot.std() == 0) == (drafting is None)
    assert done.output_tokens == workload.output_tokens.sum()
    # tokens of one step arrive together: times between tokens are steps
    centres, _ = done.gaps.seconds()
    assert centres == pytest.approx([STEP_S], rel=0.01)


def test_acceptance_belongs_to_the_request_and_the_seed():
    first, again, other = (played(Drafting(2, 0.7, 0.1, seed))[1] for seed in (1, 1, 2))
    assert first.finish_ps == again.finish_ps
    assert first.finish_ps != other.finish_ps
    fewer = played(Drafting(2, 0.7, 0.1, 1), requests=10)[1]
    assert fewer.finish_ps == first.finish_ps[:10]


def test_a_scenario_with_drafts():
    drafts = ["engine.draft_tokens=2", "engine.acceptance=0.7", "engine.acceptance_spread=0.1"]
    plain, drafted = (
        run_serving(resolve("deepseek_r1_serve_h200x8", [*SMALL, *more]), with_changes=False).result
        for more in ([], drafts)
    )
    assert plain.metrics["tokens_per_decode_step"].value == 1
    assert drafted.metrics["tokens_per_decode_step"].value == pytest.approx(2.2, rel=0.03)
    assert drafted.metrics["mean_tpot_s"].value < plain.metrics["mean_tpot_s"].value
    assert drafted.metrics["mean_itl_s"].value > plain.metrics["mean_itl_s"].value
    assert "draft" in {share.name for share in drafted.breakdown}


def test_drafts_that_cannot_be_are_told():
    for change, told in (
        (["model=qwen3_30b_a3b", "plan.tp=4"], r"engine\.draft_tokens: got 2"),
        (["engine.acceptance=0.5", "engine.acceptance_spread=0.6"], r"acceptance_spread: got 0\.6"),
    ):
        with pytest.raises(InputError, match=told):
            build_serving(resolve("deepseek_r1_serve_h200x8", ["engine.draft_tokens=2", *change]))
    assert most_spread(0.5) == 0.5
    command = 'vllm serve Qwen/Qwen3-30B-A3B --speculative-config \'{"method": "mtp"}\''
    tree, warnings = scenario_of_command(command, "h200_sxm", "0.15.1")
    assert "draft_tokens" not in tree.data["engine"]
    assert any("drafts ignored" in warning for warning in warnings)


def test_a_command_with_drafts_keeps_their_acceptance():
    config = '--speculative-config \'{"method": "deepseek_mtp", "num_speculative_tokens": 1}\''
    tree, _ = scenario_of_command(f"{COMMAND} {config}", "h200_sxm", "0.15.1")
    assert tree.data["engine"]["draft_tokens"] == 1
    assert 0 < tree.data["engine"]["acceptance"] < 1
    ngram = '--speculative-config \'{"method": "ngram", "num_speculative_tokens": 4}\''
    tree, warnings = scenario_of_command(
        f"vllm serve deepseek-ai/DeepSeek-R1 -tp 8 {ngram}", "h200_sxm", "0.15.1"
    )
    assert "draft_tokens" not in tree.data["engine"]
    assert any("ngram" in warning for warning in warnings)
