"""Corrections: found where the form leaves something over, faded where nothing was seen, tabulated alike."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.evidence import rng_for
from moesim.hardware import load_device
from moesim.kernels.correction_table import CorrectionTable
from moesim.kernels.fit.correction import fit_correction, learn
from moesim.kernels.fit.optimise import Solution, form_parts, predict_s
from moesim.kernels.forms.correction import FADE, WORK, Correction, coordinates
from moesim.kernels.forms.families import form_of
from moesim.kernels.forms.gemm import GemmChoice, GemmParameters
from moesim.kernels.measured import MeasuredTable

H100 = load_device("h100_sxm")
FORM = form_of("gemm")
NAMES = FORM.correction_columns, FORM.shape_columns


def table_of(size=1500, bend=0.4, noise=0.03, seed=0):
    """Times of the form, off by a smooth function of rows and n that it cannot express."""
    rng = rng_for(seed, "test/correction")
    columns = {
        "rows": np.round(2.0 ** (13 * rng.random(size))),
        "n": 512.0 * rng.integers(1, 20, size),
        "k": 512.0 * rng.integers(1, 20, size),
        "count": np.ones(size),
    }
    work = FORM.work(columns, "bf16")
    seconds = FORM.seconds(work, FORM.machine(H100, "bf16"), GemmParameters(), GemmChoice()).seconds
    lump = bend * np.sin(np.log2(columns["rows"]) * 0.6) * (columns["n"] > 5000)
    seconds = seconds * np.exp(lump + noise * rng.standard_normal(size))
    return MeasuredTable("gemm", "h100_sxm", "x/y", "bf16", columns, seconds)


@pytest.fixture(scope="module")
def learnt():
    return learn(table_of(), H100, max_rows=120)


def test_what_the_form_cannot_express_is_learnt(learnt):
    unseen = table_of(seed=1)
    plain = replace(learnt.solution, correction=None)
    errors = [
        float(np.median(np.abs(np.log(predict_s(solution, unseen, H100) / unseen.seconds))))
        for solution in (plain, learnt.solution)
    ]
    assert errors[1] < 0.6 * errors[0]
    assert errors[1] == pytest.approx(np.median(np.abs(learnt.errors[1])), rel=0.3)


def test_noise_is_not_learnt():
    table = table_of(size=400, bend=0.0)
    true = Solution(GemmParameters(), GemmChoice(), 0.0)
    found = fit_correction(
        table,
        coordinates(table.columns, form_parts(true, table, H100)),
        0.05 * rng_for(0, "test/noise").standard_normal(table.num_rows),
        *NAMES,
    )
    assert found.correction is None


def test_correction_fades_beyond_the_largest_work_seen(learnt):
    correction = learnt.solution.correction
    found = {name: np.array([most]) for name, (_, most) in correction.ranges.items()}
    work = correction.largest_s * np.array([1.0, FADE**0.5, FADE])
    logs = [float(correction.log(found | {WORK: np.array([size])})[0]) for size in work]
    assert logs[1] == pytest.approx(logs[0] / 2)
    assert logs[2] == 0


def test_table_is_the_sum(learnt):
    solution = learnt.solution
    machine = FORM.machine(H100, "bf16")
    usual = {"count": 1.0}
    table = CorrectionTable(
        solution.correction, FORM, "bf16", machine, solution.parameters, solution.choice, usual
    )
    columns = {"rows": np.geomspace(1, 8000, 500), "n": 4096.0, "k": 7168.0, "count": 1.0}
    arrays = {name: np.asarray(value, dtype=float) for name, value in columns.items()}
    factors = table.factor(columns)
    assert np.abs(np.log(factors) - table.log(arrays)).max() < 0.02
    assert table.factor(columns | {"rows": 100.0}) == pytest.approx(
        np.exp(table.log(arrays | {"rows": 100.0})), rel=0.01
    )
    mixed = {name: np.array([value, value]) for name, value in (columns | {"rows": 100.0}).items()}
    assert np.exp(table.log(mixed)) == pytest.approx(table.factor(mixed))


def test_products_enter_with_their_weights():
    spans = {"a": (1.0, 16.0), "b": (1.0, 16.0)}
    correction = Correction(0.1, 1.0, spans, {}, {"a b": (1.0, 0.0, 0.0, 0.0)})
    found = {"a": np.array([1.0, 16.0, 16.0, 99.0]), "b": np.array([1.0, 16.0, 4.0, 1.0]), WORK: 1.0}
    assert correction.log(found) == pytest.approx([1.1, 1.1, 0.1, -0.9])
