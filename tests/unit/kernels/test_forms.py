"""Physical forms against hand-worked numbers and against the laws that any kernel obeys."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.hardware import load_device
from moesim.kernels.forms.attention_decode import DecodeChoice, DecodeParameters, DecodeWork, decode_parts
from moesim.kernels.forms.attention_prefill import (
    PrefillChoice,
    PrefillParameters,
    PrefillWork,
    prefill_parts,
)
from moesim.kernels.forms.base import Machine, Parts, smooth_max
from moesim.kernels.forms.experts import ExpertChoice, ExpertParameters, ExpertWork, expert_parts
from moesim.kernels.forms.families import FORMS, form_of, variants_of
from moesim.kernels.forms.formats import attention_dtype, attention_operands, operands
from moesim.kernels.forms.gemm import GemmChoice, GemmParameters, GemmWork, gemm_parts
from moesim.kernels.forms.regime import regime_of
from moesim.kernels.forms.simple import StreamChoice, StreamParameters, StreamWork, stream_parts
from moesim.kernels.histogram import ExpertLoad
from moesim.kernels.measured import FAMILIES, MeasuredTable

GPU = Machine(1e15, 4e12, 132, 5e7, 3.8e12, True)
CPU = Machine(1e11, 3e10, 2, 3e7, 1e11, False)


def gemm(rows, n=4096, k=4096, parameters=None, choice=None, machine=GPU):
    work = GemmWork(np.asarray(rows, float), n, k, 1, 2.0, 2.0, 2.0)
    return gemm_parts(work, machine, parameters or GemmParameters(), choice or GemmChoice())


def experts(counts, choice=None, parameters=None, machine=GPU, **shape):
    load = ExpertLoad.of(np.asarray(counts))
    work = ExpertWork(
        *(load.rows, load.rows, load.rows, load.touched, load.padded_rows, np.shape(counts)[-1]),
        *(shape.get("hidden", 2048), shape.get("width", 768), 2, 2.0, 2.0),
    )
    return expert_parts(work, machine, parameters or ExpertParameters(), choice or ExpertChoice())


def test_smooth_gemm_by_hand():
    p = GemmParameters(launch_s=1e-6, compute_fraction=1, bandwidth_fraction=1, overlap_power=12)
    p = replace(p, half_rows=0.01, half_columns=0.01)
    parts = gemm([1e4], 1000, 1000, p, GemmChoice("smooth"), CPU)
    # 2e10 FLOP at 1e11 FLOP/s; traffic 42 MB at 3e10 B/s is hidden
    assert parts.compute_s[0] == pytest.approx(0.2)
    assert parts.seconds[0] == pytest.approx(0.2, rel=2e-4)


def test_memory_bound_gemm_takes_its_weights():
    p = GemmParameters(launch_s=1e-6, bandwidth_fraction=0.5, overlap_power=12)
    parts = gemm([1.0], 8192, 8192, p)
    assert parts.memory_s[0] == pytest.approx(2 * 8192 * 8193 * 1.0 / 2e12, rel=0.01)
    assert regime_of(parts, p.launch_s)[0] == "memory"
    assert parts.seconds[0] > parts.memory_s[0]


def test_split_of_the_inner_sum_fills_the_units():
    lone = gemm([128.0], 128, 16384).seconds[0]
    unsplit = gemm([128.0], 128, 16384, choice=GemmChoice("by_rows")).seconds[0]
    assert lone < 0.5 * unsplit


def test_quantised_and_eager_terms_only_add():
    plain = gemm([64.0, 4096.0]).seconds
    quantised = gemm([64.0, 4096.0], choice=GemmChoice(quantises=True)).seconds
    eager = gemm([64.0, 4096.0], choice=GemmChoice(eager=True)).seconds
    assert (quantised > plain).all()
    assert eager[0] >= GemmParameters().host_s
    assert eager[1] == pytest.approx(plain[1], rel=0.05)


def test_touched_experts_rule_the_memory_side():
    few = experts([128, 0, 0, 0, 0, 0, 0, 0])
    many = experts([16] * 8)
    assert many.memory_s > 3 * few.memory_s
    assert many.compute_s == pytest.approx(few.compute_s)


def test_rows_of_remote_experts_cost_only_kernels_that_stream_them():
    load = ExpertLoad.of(np.array([8, 8]))
    work = ExpertWork(512.0, 4096.0, load.rows, load.touched, load.padded_rows, 2, 2048, 768, 2, 2.0, 2.0)
    own = expert_parts(work, GPU, ExpertParameters(), ExpertChoice())
    all_ = expert_parts(work, GPU, ExpertParameters(), ExpertChoice(streams_all_rows=True))
    assert all_.seconds > own.seconds


def test_switching_kernel_has_two_regimes():
    p = ExpertParameters(few_compute_ratio=3.0)
    choice = ExpertChoice("switch")
    below, above = (experts([c] * 64, choice, p).compute_s / c for c in (1, 64))
    assert below == pytest.approx(above)
    assert experts([8] * 64, choice, p).seconds != experts([8] * 64, choice).seconds


@pytest.mark.parametrize(("window", "pairs_of"), [(np.inf, 36), (128.0, 8 + 7)])
def test_prefill_counts_blocks(window, pairs_of):
    # 8 blocks of 128: 36 causal block pairs; a window of one block still touches two key blocks a row
    work = PrefillWork(1, 1024, 0, 1, 1, 64, 64, window, 2.0, 2.0)
    p = PrefillParameters(compute_fraction=1.0, exponential_fraction=1e3, overlap_power=1.02)
    parts = prefill_parts(work, GPU, p, PrefillChoice(128))
    pair_s = smooth_max(2 * 128 / 1e15, 1 / (1e3 * GPU.exponentials_per_s), 1.02)
    assert parts.compute_s == pytest.approx(pairs_of * 128 * 128 * pair_s)


def test_bidirectional_attention_does_twice_the_work():
    work = PrefillWork(4, 4096, 0, 32, 8, 128, 128, np.inf, 2.0, 2.0)
    causal = prefill_parts(work, GPU, PrefillParameters(), PrefillChoice())
    full = prefill_parts(replace(work, is_causal=False), GPU, PrefillParameters(), PrefillChoice())
    assert full.compute_s == pytest.approx(2 * causal.compute_s, rel=0.05)


def test_cached_context_is_more_work():
    cold = PrefillWork(1, 512, 0, 32, 8, 128, 128, np.inf, 2.0, 2.0)
    deep = replace(cold, context_tokens=8192)
    both = [prefill_parts(w, GPU, PrefillParameters(), PrefillChoice()).seconds for w in (cold, deep)]
    assert both[1] > 2 * both[0]


def test_decode_streams_the_cache_once():
    work = DecodeWork(256, 8192, 1, 32, 8, 128, 128, 8 * 256 * 2.0, 2.0, is_cold=True)
    parts = decode_parts(work, GPU, DecodeParameters(bandwidth_fraction=0.8), DecodeChoice())
    assert parts.memory_s == pytest.approx(256 * 8192 * 4096 / 3.2e12)
    assert parts.seconds > parts.memory_s


def test_warm_cache_is_never_slower_and_one_sequence_cannot_draw_the_bandwidth():
    work = DecodeWork(1, 4096, 1, 8, 8, 128, 128, 8 * 256 * 2.0, 2.0)
    warm = decode_parts(work, GPU, DecodeParameters(), DecodeChoice())
    cold = decode_parts(replace(work, is_cold=True), GPU, DecodeParameters(), DecodeChoice())
    assert warm.seconds < cold.seconds
    whole = decode_parts(work, GPU, DecodeParameters(), DecodeChoice(splits=False))
    assert whole.memory_s > warm.memory_s


def test_stream_and_router():
    p = StreamParameters(launch_s=1e-6, bandwidth_fraction=0.5, compute_fraction=1.0, score_s=1e-9)
    assert stream_parts(StreamWork(np.array([0.0, 2e6])), GPU, p, StreamChoice()).seconds.tolist() == (
        pytest.approx([0.0, 2e-6])
    )
    routed = stream_parts(StreamWork(2e6, 1e9, 1000.0), GPU, p, StreamChoice(scores=True))
    assert float(routed.seconds) == pytest.approx(1e-6 + 1e-6 + 1e-6 + 1e-6)


def test_regimes():
    parts = Parts(np.array([1.5e-6, 1e-3, 1e-3]), np.array([1.0, 2, 1]), np.array([1.0, 1, 2]))
    assert regime_of(parts, 1e-6).tolist() == ["launch", "memory", "compute"]


def test_formats():
    assert operands("fp8").inputs == "fp8"
    assert operands("mxfp4_x_mxfp8").multiplied_as == "fp8"
    assert operands("int4").multiplied_as == "bf16"
    assert operands("fp32").outputs == "fp32"
    assert attention_dtype("bf16", "bf16") == "bf16"
    assert attention_operands(attention_dtype("bf16", "fp8")).weight_bytes == 1.0


def test_machine_of_devices():
    gpu = Machine.of(load_device("h100_sxm"), "fp8")
    assert gpu.is_tiled
    assert gpu.flops_per_s == pytest.approx(1978.9e12)
    cpu = Machine.of(load_device("epyc_2core_vm"), "fp32")
    assert not cpu.is_tiled
    assert cpu.exponentials_per_s == pytest.approx(
        load_device("epyc_2core_vm").peak_flops_per_s["fp32"] / 64 * 16
    )


def random_columns(family, size, rng):
    low_high = {"window": (0, 0), "count": (1, 1), "gated": (1, 1), "num_kv_heads": (1, 4), "top_k": (1, 8)}
    columns = {}
    for name in FAMILIES[family]:
        low, high = low_high.get(name, (8, 4096))
        columns[name] = rng.integers(low, high, size, endpoint=True).astype(float)
    if "num_heads" in columns:
        columns["num_heads"] = columns["num_kv_heads"] * rng.choice([1, 4, 8], size)
    return columns


@pytest.mark.parametrize("family", FORMS)
@pytest.mark.parametrize("machine", [GPU, CPU], ids=["gpu", "cpu"])
def test_every_form_is_positive_finite_and_never_faster_on_a_slower_machine(family, machine):
    form = form_of(family)
    columns = random_columns(family, 200, np.random.default_rng(0))
    work = form.work(columns, "bf16")
    slower = replace(machine, flops_per_s=machine.flops_per_s / 2)
    narrower = replace(machine, bandwidth_bytes_per_s=machine.bandwidth_bytes_per_s / 2, cache_bytes=0.0)
    for values in zip(*form.axes(machine, "bf16", 1e-3).values(), strict=False):
        choice = form.choice(**dict(zip(form.axes(machine, "bf16", 1e-3), values, strict=True)))
        times = [
            np.asarray(form.seconds(work, m, form.parameters(), choice).seconds) for m in (machine, slower)
        ]
        times.append(np.asarray(form.seconds(work, narrower, form.parameters(), choice).seconds))
        assert all(np.isfinite(t).all() and (t > 0).all() for t in times)
        assert (times[1] >= times[0] * (1 - 1e-9)).all()
        assert (times[2] >= times[0] * (1 - 1e-9)).all()
        assert set(form.free(choice)) <= set(form.bounds())


def test_variants_split_grouped_heads():
    columns = random_columns("attention_decode", 3, np.random.default_rng(0))
    columns["num_kv_heads"] = np.array([8.0, 8, 1])
    columns["num_heads"] = np.array([8.0, 32, 1])
    table = MeasuredTable("attention_decode", "d", "s", "bf16", columns, np.ones(3))
    parts = {name: part.columns["num_heads"].tolist() for name, part in variants_of(table)}
    assert parts == {"grouped": [32], "ungrouped": [8, 1]}
    products = random_columns("gemm", 3, np.random.default_rng(0))
    whole = MeasuredTable("gemm", "d", "s", "bf16", products, np.ones(3))
    assert list(variants_of(whole)) == [("", whole)]
    empty_kernels = MeasuredTable("launch", "d", "s", "bf16", {"num_kernels": np.ones(3)}, np.ones(3))
    assert not list(variants_of(empty_kernels))


def test_family_without_a_form():
    with pytest.raises(InputError, match="one with a physical form, gemm"):
        form_of("copy")
