import pytest

from moesim.errors import InputError
from moesim.serving.checkpoints import stored_formats
from moesim.serving.engine_cost import engine_cost
from moesim.serving.profiles import Speculation, engine_names, load_profile, release_order


def test_releases_are_ordered_as_they_came_out():
    rising = [
        *("0.5.1.post1", "0.5.6", "0.5.6.post2", "0.5.9", "0.9.1", "0.10.0", "0.12.0"),
        *("1.0.0rc3", "1.0.0", "1.1.0rc2", "1.1.0rc2.post2", "1.2.0rc6", "1.2.0rc6.post2", "1.2.0rc6.post3"),
        *("1.2.0", "1.3.0rc1"),
    ]
    orders = [release_order(name) for name in rising]
    assert orders == sorted(orders)
    assert len(set(orders)) == len(orders)


@pytest.mark.parametrize("engine", engine_names())
def test_every_profile_holds_for_any_version(engine):
    for version in ("", "0.0.1", "0.5.9", "1.0.0rc3", "99.0", "nightly-abc"):
        profile = load_profile(engine, version)
        assert profile.graph_batches == tuple(sorted(set(profile.graph_batches)))
        assert profile.step_sigma >= profile.sigma
    assert not load_profile(engine, "99.0").is_exact
    assert not load_profile(engine, "").is_exact


def test_versions_lie_over_defaults_key_by_key():
    first, later = load_profile("trtllm", "1.2.0rc6"), load_profile("trtllm", "1.2.0rc6.post3")
    assert later.speculation.draft_tokens > first.speculation.draft_tokens == 0
    assert later.host.request_s == first.host.request_s
    assert load_profile("TensorRT-LLM", "1.2.0rc6") == first
    # a distribution's own numbers stand for the engine's
    assert load_profile("trtllm", "0.8.1.post2").family == "1.2.0rc6"


def test_an_unknown_engine_is_told_with_the_known_ones():
    with pytest.raises(InputError, match="'vlm'; accepted: one of sglang, trtllm, vllm; did you mean 'vllm'"):
        load_profile("vlm")


def test_tokens_per_step_is_the_sum_of_chances():
    speculation = Speculation(draft_tokens=2, draft_tokens_attention_dp=1, acceptance=0.5)
    assert speculation.drafting(speculation.drafts(1)).gain == 1.75
    assert speculation.drafting(speculation.drafts(8)).gain == 1.5


def test_checkpoints_hold_what_was_published():
    assert stored_formats("deepseek_r1", "fp8", "fp8").experts == "fp8_block"
    nvfp4 = stored_formats("deepseek_v3", "nvfp4", "nvfp4", "fp8")
    assert (nvfp4.of_mixer().weights, nvfp4.weights, nvfp4.kv) == ("bf16", "nvfp4", "fp8")
    assert stored_formats("gpt_oss_120b", "nvfp4", "nvfp4").experts == "mxfp4"
    assert stored_formats("llama_3_1_70b", "fp8", "fp8").weights == "fp8"


def test_folded_quantisation_makes_small_products_cheaper():
    from moesim.hardware import load_device
    from moesim.model.ops import Gemm

    kernels = load_profile("trtllm", "1.2.0rc2").kernels
    op = Gemm("x", 8.0, 4096, 4096, "fp8", "bf16")
    device = load_device("h200_sxm")
    apart = engine_cost(device, kernels.model_copy(update={"fuses_quantisation": False}))
    assert engine_cost(device, kernels).op(op).seconds < apart.op(op).seconds
