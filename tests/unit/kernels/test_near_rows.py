"""Measured rows beside a fit: met where they are, felt nearby, without effect far away."""

import numpy as np
import pytest

from moesim.hardware import load_device
from moesim.kernels.choose import cost_of
from moesim.kernels.fit_file import load_fits
from moesim.kernels.forms.families import form_of
from moesim.kernels.measured import MeasuredTable
from moesim.kernels.near_rows import NearRows, fitted_s
from moesim.model.ops import Gemm

H100 = load_device("h100_sxm")
FITS = load_fits("h100_sxm")
KEY = FITS.engines["default"]["gemm/bf16"]
FIT = next(f for f in FITS.fits if (f.family, f.dtype, f.source) == ("gemm", "bf16", KEY))
MACHINE = form_of("gemm").machine(H100, "bf16")


def table_of(factor):
    rows = np.array([16.0, 64.0, 256.0, 1024.0])
    columns = {"rows": rows, "n": 0 * rows + 4096, "k": 0 * rows + 4096, "count": 0 * rows + 1}
    seconds = factor * fitted_s(FIT, columns, MACHINE)
    return MeasuredTable("gemm", "h100_sxm", FIT.source, "bf16", columns, seconds)


def test_a_measured_row_is_met_and_a_far_one_unknown():
    near = NearRows.of(FIT, table_of(1.5), MACHINE)
    found = near.look({"rows": np.array([64.0, 70.0, 30000.0]), "n": 4096.0, "k": 4096.0})
    assert found.log[0] == pytest.approx(np.log(1.5), rel=0.01)
    assert 0.7 * np.log(1.5) < found.log[1] <= np.log(1.5)
    assert abs(found.log[2]) < 0.35 * np.log(1.5)
    assert found.is_near.tolist() == [True, True, False]


def test_cost_with_rows_says_that_it_is_interpolated():
    op = Gemm("g", 64.0, 4096, 4096, "bf16", "bf16")
    plain, looked_up = cost_of(H100), cost_of(H100, tables=[table_of(2.0)])
    assert looked_up.op(op).seconds == pytest.approx(2 * plain.op(op).seconds, rel=0.03)
    assert (plain.op(op).grade, looked_up.op(op).grade) == ("fitted", "interpolated")
    far = Gemm("g", 64.0, 512, 512, "bf16", "bf16")
    assert looked_up.op(far).grade == "fitted"
    several = Gemm("g", np.array([16.0, 64.0]), 4096, 4096, "bf16", "bf16")
    assert looked_up.op(several).seconds.shape == (2,)
