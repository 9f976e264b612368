"""The fitted cost model: answers with the fit it should, wider beyond its range, else the fallback."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.hardware import load_device
from moesim.kernels.choose import cost_of, nearest_of
from moesim.kernels.cost import FixedCost, RooflineCost
from moesim.kernels.fit_file import DeviceFits, Fit
from moesim.kernels.fitted import FittedCost
from moesim.kernels.forms.families import FORMS, form_of
from moesim.kernels.histogram import ExpertLoad
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, GroupedExperts, MemoryBound, Router

H100 = load_device("h100_sxm")
RANGES = {
    "gemm": {"rows": (1, 8192), "n": (128, 16384), "k": (128, 16384)},
    "moe": {"rows": (1, 65536), "hidden": (1024, 8192), "width": (256, 8192)},
}


def fit_of(family, dtype="bf16", variant="", sigma=0.1, **parameters):
    form = form_of(family)
    names = form.free(form.choice())
    values = {n: start for n, (start, _, _) in form.bounds().items() if n in names} | parameters
    return Fit(
        family=family,
        dtype=dtype,
        source="vllm/x",
        variant=variant,
        parameters=values,
        sigma={"launch": 2 * sigma, "memory": sigma, "compute": sigma},
        seen=RANGES.get(family, {}),
        larger_sigma_ratio=2.0,
        far_larger_sigma_ratio=5.0,
        num_rows=100,
        num_fitted_rows=30,
        evidence="fitted: test",
    )


def cost(*fits, device=H100, fallback=None, **kwargs):
    kernels = {f"{f.family}/{f.dtype}": f.source for f in fits}
    file = DeviceFits(device=device.name, engines={"default": kernels}, fits=fits, sources={})
    return FittedCost(device, file, fallback or FixedCost(1.0), **kwargs)


def gemm(rows, dtype="bf16", n=4096):
    return Gemm("g", rows, n, 4096, dtype, "bf16")


def test_gemm_is_the_form_with_the_fitted_numbers():
    estimate = cost(fit_of("gemm")).op(gemm(np.array([0.0, 16.0, 4096.0])))
    form = form_of("gemm")
    columns = {"rows": np.array([16.0, 4096.0]), "n": 4096.0, "k": 4096.0, "count": 1.0}
    parts = form.seconds(
        form.work(columns, "bf16"), form.machine(H100, "bf16"), form.parameters(), form.choice()
    )
    assert estimate.seconds[0] == 0
    assert estimate.seconds[1:] == pytest.approx(parts.seconds)
    assert (estimate.grade, estimate.family) == ("fitted", "gemm")


def test_scalar_in_scalar_out():
    assert isinstance(cost(fit_of("gemm")).op(gemm(16)).seconds, float)


def test_sigma_is_weighted_with_time_and_wider_beyond_the_range():
    model = cost(fit_of("gemm"))
    assert model.op(gemm(4096.0)).sigma == pytest.approx(0.1)
    tiny = Gemm("g", 1.0, 128, 128, "bf16", "bf16")
    assert model.op(tiny).sigma == pytest.approx(0.2)  # bound by the launch
    assert model.op(gemm(65536.0)).sigma == pytest.approx(0.2)
    both = model.op(gemm(np.array([4096.0, 65536.0]))).sigma
    assert 0.19 < both < 0.2
    assert model.op(gemm(10 * 8192.0)).sigma == pytest.approx(0.5)  # far beyond


def test_changed_datasheet_changes_the_time():
    memory = {"hbm": H100.main_memory.model_copy(update={"bandwidth_bytes_per_s": 6.7e12})}
    faster = H100.model_copy(update={"memory": memory})
    slow, fast = (cost(fit_of("gemm"), device=d).op(gemm(1.0, n=16384)).seconds for d in (H100, faster))
    launch_s = form_of("gemm").parameters().launch_s
    assert fast - launch_s < 0.6 * (slow - launch_s)


def test_formats_without_a_fit_fall_back():
    model = cost(fit_of("gemm"), fit_of("elementwise"))
    assert model.op(gemm(16.0, "fp8")).seconds == 1.0
    assert model.op(gemm(16.0, "fp16")).seconds < 1.0
    assert model.op(Router("r", 16.0, 2048, 64, 8, "bf16", "bf16")).seconds == 1.0
    assert model.op(MemoryBound("state", 1e6, 1e9)).seconds == 1.0
    assert model.op(MemoryBound("norm", 1e6)).seconds < 1e-3
    prefill = AttentionPrefill("a", 1.0, 128.0, 0.0, 32, 8, 128, 0, "bf16", "bf16")
    assert model.op(prefill).seconds == 1.0


def test_experts_follow_the_histogram():
    op = GroupedExperts("e", 2048, 768, True, "bf16", "bf16", 8, 2)
    model = cost(fit_of("moe"))
    counts = np.array([[128, 0, 0, 0, 0, 0, 0, 0], [16] * 8, [0] * 8])
    seconds = model.experts(op, ExpertLoad.of(counts)).seconds
    assert seconds[1] > seconds[0]
    assert seconds[2] == 0
    assert cost(fit_of("gemm")).experts(op, ExpertLoad.of(counts)).seconds.tolist() == [1, 1, 0]


def test_decode_picks_its_variant_and_reads_a_cold_cache():
    model = cost(
        fit_of("attention_decode", variant="grouped"),
        fit_of("attention_decode", variant="ungrouped", launch_s=9e-4),
    )
    grouped = AttentionDecode("a", 8.0, 1024.0, 1.0, 32, 8, 128, 128, 4096.0, "bf16", "bf16")
    ungrouped = AttentionDecode("a", 8.0, 1024.0, 1.0, 8, 8, 128, 128, 4096.0, "bf16", "bf16")
    assert model.op(grouped).seconds < 1e-4 < 9e-4 < model.op(ungrouped).seconds
    drafts = AttentionDecode("a", 8.0, 1024.0, 4.0, 32, 8, 128, 128, 4096.0, "bf16", "bf16")
    assert model.op(drafts).seconds >= model.op(grouped).seconds
    windowed = AttentionDecode("a", 64.0, 65536.0, 1.0, 32, 8, 128, 128, 4096.0, "bf16", "bf16", window=128)
    whole = AttentionDecode("a", 64.0, 65536.0, 1.0, 32, 8, 128, 128, 4096.0, "bf16", "bf16")
    assert model.op(windowed).seconds < 0.1 * model.op(whole).seconds


def test_latent_attention_has_its_own_family_or_borrows():
    op = AttentionDecode("m", 8.0, 1024.0, 1.0, 128, 1, 576, 512, 1152.0, "bf16", "bf16")
    own = cost(fit_of("mla_decode", launch_s=9e-4), fit_of("attention_decode", variant="grouped"))
    borrowed = cost(fit_of("attention_decode", variant="grouped"))
    assert own.op(op).seconds > 9e-4 > borrowed.op(op).seconds
    prefill = AttentionPrefill("m", 1.0, 512.0, 0.0, 16, 16, 192, 128, "bf16", "fp8")
    assert cost(fit_of("mla_prefill", "bf16_kv_fp8")).op(prefill).seconds < 1e-3
    assert cost(fit_of("mla_prefill")).op(prefill).seconds < 1e-3


def test_transferred_fits_are_no_surer_than_the_transfer():
    model = cost(fit_of("gemm"), fit_of("moe"), least_sigma={"gemm": 0.3})
    assert model.op(gemm(4096.0)).sigma == 0.3
    op = GroupedExperts("e", 2048, 768, True, "bf16", "bf16", 8, 2)
    assert model.experts(op, ExpertLoad.of(np.array([16] * 8))).sigma == 0.3


def test_choice_of_the_cost_model():
    laptop = load_device("generic_laptop")
    assert isinstance(cost_of(laptop), RooflineCost)
    assert nearest_of(load_device("h800_sxm"), ["h100_sxm", "l40s", "b200_sxm"]) == "h100_sxm"
    assert nearest_of(load_device("l4"), ["h100_sxm", "l40s"]) == "l40s"
    assert nearest_of(load_device("h20"), ["a100_sxm_80", "h200_sxm"]) == "h200_sxm"
    assert nearest_of(load_device("mi300x"), ["h200_sxm", "b200_sxm"]) is None
    assert nearest_of(laptop, ["h100_sxm"]) is None


def test_fit_of_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match="unknown speed"):
        fit_of("gemm", speed=1.0)
    with pytest.raises(ValueError, match="has no physical form"):
        Fit(
            family="copy",
            dtype="",
            source="",
            parameters={},
            sigma={},
            seen={},
            num_rows=0,
            num_fitted_rows=0,
            evidence="",
        )


def test_engines_without_fits_are_refused():
    with pytest.raises(ValueError, match="no fit for gemm/fp8"):
        DeviceFits(device="x", engines={"default": {"gemm/fp8": "y"}}, fits=(), sources={})
    with pytest.raises(InputError, match="engine"):
        cost(fit_of("gemm"), engine="nobody").op(gemm(1.0))


@pytest.mark.parametrize("family", FORMS)
def test_defaults_of_every_form_lie_inside_their_bounds(family):
    for start, low, high in form_of(family).bounds().values():
        assert 0 < low <= start <= high
