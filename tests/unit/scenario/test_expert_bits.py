"""Bits of experts: the programme's optimum, its constraints, and bad input."""

from itertools import product

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.scenario.expert_bits import GAUSSIAN_ERROR, allocate_bits


def counts(seed, layers=2, experts=6):
    return np.random.default_rng(seed).integers(1, 100, (layers, experts))


def by_hand(row, mean_bits, widths=(1, 2, 3)):
    """Best of all assignments of a small layer."""
    share = row / row.sum()
    best = np.inf
    for plan in product(widths, repeat=row.size):
        if sum(plan) <= mean_bits * row.size and {widths[-1], widths[-2]} <= set(plan):
            best = min(best, sum(s * GAUSSIAN_ERROR[w] ** 2 for s, w in zip(share, plan, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_the_programme_finds_the_best_assignment(seed):
    wanted = counts(seed)
    plan = allocate_bits(wanted, 2.0)
    assert plan.error == pytest.approx(sum(by_hand(row, 2.0) for row in wanted), rel=1e-6)
    assert plan.lower_bound <= plan.error * (1 + 1e-6)
    assert plan.error <= plan.uniform_error


@pytest.mark.parametrize("mean_bits", [1.5, 2.0, 2.5])
def test_a_plan_keeps_its_mean_and_the_widest_formats(mean_bits):
    wanted = counts(7, layers=3, experts=16)
    plan = allocate_bits(wanted, mean_bits)
    assert (plan.bits.mean(axis=1) <= mean_bits).all()
    for row in plan.bits:
        assert {2, 3} <= set(row.tolist())
    # what is used more gets no fewer bits
    for row, used in zip(plan.bits, wanted, strict=True):
        assert (np.diff(row[np.argsort(used, kind="stable")]) >= 0).all()
    assert plan.activated_bits(wanted) >= plan.mean_bits


def test_more_bits_never_cost_accuracy():
    wanted = counts(8)
    errors = [allocate_bits(wanted, mean).error for mean in (1.6, 2.0, 2.5, 3.0)]
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize(
    ("mean", "widths", "match"),
    [
        (0.9, (1, 2, 3), "mean_bits"),
        (3.5, (1, 2, 3), "mean_bits"),
        (2.0, (2, 5), "widths"),
        (2.0, (2,), "widths"),
    ],
)
def test_bad_input_is_refused(mean, widths, match):
    with pytest.raises(InputError, match=match):
        allocate_bits(counts(9), mean, widths=widths)
