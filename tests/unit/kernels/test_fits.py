"""Fits find the parameters that made a table and count their errors on rows not seen."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.evidence import covering_sigma, rng_for
from moesim.hardware import load_device
from moesim.kernels.choose import few_rows_sigma
from moesim.kernels.fit.device import engines_of, fit_device, slow_kernels
from moesim.kernels.fit.optimise import LEAN, Prior, datasheet_s, fit_rows, predict_s, subsample
from moesim.kernels.fit.protocol import fit_table, random_split, shape_split
from moesim.kernels.fit_file import DeviceFits, load_fits, write_fits
from moesim.kernels.forms.families import form_of
from moesim.kernels.forms.gemm import GemmChoice, GemmParameters
from moesim.kernels.measured import MeasuredTable

H100 = load_device("h100_sxm")
TRUE = GemmParameters(launch_s=4e-6, compute_fraction=0.6, bandwidth_fraction=0.7, split_s=3e-6)


def gemm_table(size=600, noise=0.05, device="h100_sxm", source="vllm/x", dtype="bf16"):
    rng = rng_for(0, "test")
    columns = {
        "rows": 2.0 ** rng.integers(0, 14, size),
        "n": 512.0 * rng.integers(1, 20, size),
        "k": 512.0 * rng.integers(1, 20, size),
        "count": np.ones(size),
    }
    form = form_of("gemm")
    work = form.work(columns, dtype)
    seconds = form.seconds(work, form.machine(H100, dtype), TRUE, GemmChoice()).seconds
    seconds = seconds * np.exp(noise * rng.standard_normal(size))
    return MeasuredTable("gemm", device, source, dtype, columns, seconds, provenance={"gpu": "made up"})


@pytest.fixture(scope="module")
def fitted():
    return fit_table(gemm_table(), H100, evidence="fitted: made-up rows", side_fits=False)


def test_parameters_are_recovered(fitted):
    fit, solution = fitted
    assert solution.choice.tiling == "best"
    for name in ("launch_s", "compute_fraction", "bandwidth_fraction"):
        assert fit.parameters[name] == pytest.approx(getattr(TRUE, name), rel=0.1)


def test_held_out_error_is_the_noise_and_the_band_covers(fitted):
    fit, _ = fitted
    assert fit.num_fitted_rows == 180
    assert fit.held_out.num_rows == 420
    assert fit.held_out.median_ape == pytest.approx(0.05 * 0.67, rel=0.25)
    assert abs(fit.held_out.bias) < 0.02
    assert 0.72 < fit.held_out.coverage < 0.9
    assert sum(s.num_rows for s in fit.regimes.values()) == 420
    assert fit.seen["rows"] == (1.0, 8192.0)


def test_same_rows_same_fit():
    first, second = (fit_rows(gemm_table(80), H100) for _ in range(2))
    assert first == second


def test_gross_outliers_do_not_move_the_fit():
    table = gemm_table(300, noise=0.02)
    spoilt = table.seconds.copy()
    spoilt[::10] *= 5
    found = fit_rows(
        MeasuredTable(
            *(getattr(table, n) for n in ("family", "device", "source", "dtype", "columns")), spoilt
        ),
        H100,
    )
    error = np.log(predict_s(found, table, H100) / table.seconds)
    assert np.median(np.abs(error)) < 0.05


def test_few_rows_stay_near_their_prior():
    known = fit_rows(gemm_table(300), H100)
    few = gemm_table(5)
    slower = MeasuredTable("gemm", "h100_sxm", "s", "bf16", few.columns, few.seconds * 1.3)
    moved = fit_rows(slower, H100, prior=Prior(known.parameters, known.choice))
    error = np.log(predict_s(moved, slower, H100) / slower.seconds)
    assert np.median(np.abs(error)) < 0.15
    assert moved.choice == known.choice
    with pytest.raises(InputError, match="at least 8"):
        fit_rows(few, H100)


def test_a_small_table_is_fitted_from_a_known_device():
    known = fit_device([gemm_table()], H100, side_fits=False)
    h200 = load_device("h200_sxm")
    few = replace(gemm_table(20, device="h200_sxm"), seconds=gemm_table(20).seconds * 1.2)
    (fit,) = fit_device([few], h200, side_fits=False, near=known).fits
    assert fit.choice == known.fits[0].choice
    assert "pulled towards h100_sxm" in fit.evidence
    assert min(fit.sigma.values()) >= few_rows_sigma(h200, H100)["gemm"]
    assert fit.held_out.median_ape < 0.15
    (alone,) = fit_device([few], h200, side_fits=False).fits
    assert fit.held_out.median_ape < alone.held_out.median_ape


def test_large_rows_are_the_likelier_ones():
    table = gemm_table(4000)
    machine = form_of("gemm").machine(H100, "bf16")
    size = datasheet_s(table, machine)
    leaning = subsample(table, 400, "x", size**LEAN)
    assert np.median(datasheet_s(leaning, machine)) > 1.5 * np.median(size)
    assert leaning.seconds.tolist() == subsample(table, 400, "x", size**LEAN).seconds.tolist()


def test_splits_are_disjoint_and_the_same_each_time():
    table = gemm_table(500)
    train, test = random_split(table)
    assert (train ^ test).all()
    assert train.sum() == 150
    assert (random_split(table)[0] == train).all()
    kept, held = shape_split(table)
    shapes = [set(zip(table.columns["n"][m], table.columns["k"][m], strict=True)) for m in (kept, held)]
    assert not shapes[0] & shapes[1]
    assert len(subsample(table, 10, "x").seconds) == 10


def test_covering_sigma_covers_heavy_tails():
    error = np.abs(rng_for(0, "tails").standard_t(3, 20000))
    assert np.mean(error <= 1.2815515 * covering_sigma(error)) == pytest.approx(0.8, abs=0.01)


def test_device_file_round_trips(tmp_path):
    notes = []
    launch = MeasuredTable(
        "launch", "h100_sxm", "s", "none", {"num_kernels": np.full(3, 10.0)}, np.full(3, 2e-5)
    )
    small = gemm_table(4, source="sglang/y")
    fits = fit_device([gemm_table(120), small, launch], H100, side_fits=False, note=notes.append)
    assert fits.launch_s == pytest.approx(2e-6)
    assert fits.engines["default"] == {"gemm/bf16": "vllm/x"}
    assert any("4 rows are too few" in text for text in notes)
    path = write_fits(tmp_path / "h100_sxm.yaml", fits)
    again = load_fits(str(path))
    assert again.fits[0].choice == fits.fits[0].choice
    assert again.fits[0].parameters == pytest.approx(fits.fits[0].parameters, rel=1e-3)
    text = path.read_text()
    assert write_fits(path, again).read_text() == text
    path.write_text(text.replace('"launch_s": ', '"launch_ms": ', 2))
    with pytest.raises(InputError, match="launch_ms"):
        load_fits(str(path))


def test_wrong_device_and_nothing_to_fit():
    with pytest.raises(InputError, match="device: got 'b200_sxm'; accepted: h100_sxm"):
        fit_device([gemm_table(20, device="b200_sxm")], H100)
    with pytest.raises(InputError, match="no measured table of h100_sxm"):
        fit_device([gemm_table(3)], H100)


def test_default_engine_prefers_vllm_then_what_is_usable(fitted):
    fit, _ = fitted
    bad = fit.held_out.model_copy(update={"median_ape": 0.5})
    fits = [
        fit.model_copy(update={"source": "trtllm/a"}),
        fit.model_copy(update={"source": "vllm/b", "held_out": bad}),
        fit.model_copy(update={"source": "sglang/c"}),
        fit.model_copy(update={"source": "sglang/d", "num_rows": 10**6}),
    ]
    engines = engines_of(fits)
    assert engines["default"] == {"gemm/bf16": "sglang/d"}
    assert engines["vllm"] == {"gemm/bf16": "vllm/b"}
    file = DeviceFits(device="h100_sxm", engines=engines, fits=tuple(fits), sources={})
    assert file.chosen("trtllm")["gemm", "bf16"][0].source == "trtllm/a"
    with pytest.raises(InputError, match="engine: got 'x'; accepted: default"):
        file.chosen("x")


def test_a_slow_kernel_is_no_engines_choice(fitted):
    fit, _ = fitted
    slow = fit.model_copy(
        update={
            "source": "vllm/slow",
            "parameters": fit.parameters | {"compute_fraction": 0.1, "bandwidth_fraction": 0.1},
        }
    )
    quick = fit.model_copy(update={"source": "trtllm/quick"})
    found = slow_kernels([slow, quick], [gemm_table(50), gemm_table(50, source="trtllm/quick")], H100)
    assert found == {"gemm/bf16/vllm/slow"}
    assert engines_of([slow, quick])["default"] == {"gemm/bf16": "vllm/slow"}
    engines = engines_of([slow, quick], found)
    assert engines["default"] == {"gemm/bf16": "trtllm/quick"}
    assert engines["vllm"] == {"gemm/bf16": "vllm/slow"}
