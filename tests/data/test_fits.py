"""Every shipped file of fits: readable, of its device, and as good as it was when it was made."""

import math
from statistics import median

import pytest

from moesim.hardware import load_device
from moesim.kernels.choose import cost_of
from moesim.kernels.fit_file import fitted_devices, load_fits
from moesim.kernels.fitted import FittedCost

GPUS = [name for name in fitted_devices() if load_device(name).kind == "gpu"]
DATA_CENTRE = [name for name in GPUS if name not in {"l40s", "rtx_pro_6000"}]
MOST_ERROR = {
    "gemm": 0.08,
    "moe": 0.085,
    "attention_prefill": 0.085,
    "attention_decode": 0.085,
    "mla_prefill": 0.07,
    "mla_decode": 0.07,
}
"""Median over the kernels of all data-centre GPUs of the held-out median error."""


@pytest.mark.parametrize("name", fitted_devices())
def test_file_is_of_its_device(name):
    fits = load_fits(name)
    device = load_device(name)
    assert fits.device == device.name == name
    assert isinstance(cost_of(device), FittedCost)
    keys = [fit.key for fit in fits.fits]
    assert len(keys) == len(set(keys))
    for engine in fits.engines:
        for chosen in fits.chosen(engine).values():
            assert len({fit.source for fit in chosen}) == 1


@pytest.mark.parametrize("name", GPUS)
def test_fit_is_sane(name):
    for fit in load_fits(name).fits:
        assert fit.evidence.startswith("fitted: ")
        assert all(0.02 <= sigma < 3 for sigma in fit.sigma.values())
        assert all(math.isfinite(v) and v > 0 for v in fit.parameters.values())
        assert fit.held_out is not None
        # the worst is Triton prefill on L40S, 36 %: never a default
        assert fit.held_out.median_ape < 0.4, fit.key
        assert 0.6 <= fit.held_out.coverage <= 0.97, fit.key


@pytest.mark.parametrize("family", MOST_ERROR)
def test_quality_has_not_slipped(family):
    held_out = [f.held_out for name in DATA_CENTRE for f in load_fits(name).fits if f.family == family]
    assert median(score.median_ape for score in held_out) <= MOST_ERROR[family]
    assert 0.75 <= median(score.coverage for score in held_out) <= 0.85
