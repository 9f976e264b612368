"""Durations: exact picoseconds, one draw a family, small rows."""

import numpy as np
import pytest
from strategies import part

from moesim.engine import Durations, Program, Run, Wait, durations_ps, part_ps, to_ps, to_seconds, vector
from moesim.evidence import draw_errors
from moesim.units import NS, PS_PER_S, US


def of(*instructions):
    return Program(2, ("compute", "comm"), instructions)


def test_parts_are_rounded_before_they_are_summed():
    third = 1.0 / 3 / PS_PER_S
    parts = (part(third * 2), part(np.array([third * 2, third])), part(third * 4))
    (row,) = durations_ps(of(Run("compute", parts))).rows
    np.testing.assert_array_equal(row, [[1 + 1 + 1, 1 + 0 + 1]])
    np.testing.assert_array_equal(row, sum(part_ps(p) for p in parts))


def test_rows_stay_as_small_as_they_can():
    program = of(
        Run("compute", (part(US),)),
        Run("compute", (part(US, family="gemm", sigma=0.1),)),
        Run("compute", (part(np.full(2, US)),)),
        Run("compute", (part(np.full(2, US), family="gemm", sigma=0.1),)),
        Wait("comm", "compute"),
    )
    errors = draw_errors(program.families(), 5, seed=0)
    durations = durations_ps(program, errors)
    assert durations.num_samples == 5
    assert [row.shape for row in durations.rows] == [(1, 1), (5, 1), (1, 2), (5, 2), (1, 1)]
    assert durations_ps(program).num_samples == 1


def test_errors_of_a_family_move_together():
    errors = {"gemm": np.array([-1.0, 0.0, 2.0]), "work": np.array([1.0, 1.0, 1.0])}
    program = of(
        Run("compute", (part(US, family="gemm", sigma=0.1),)),
        Run("compute", (part(3 * US, family="gemm", sigma=0.1), part(NS))),
    )
    first, second = durations_ps(program, errors).rows
    np.testing.assert_array_equal(first[:, 0], np.rint(np.exp(0.1 * errors["gemm"]) * US * PS_PER_S))
    np.testing.assert_allclose(second - int(NS * PS_PER_S), 3 * first, atol=2)


def test_no_error_is_the_estimate_itself():
    program = of(Run("compute", (part(np.array([1.5 * US, 7 * NS]), sigma=0.3),)))
    zero = durations_ps(program, {"work": np.zeros(1)})
    np.testing.assert_array_equal(zero.rows[0], durations_ps(program).rows[0])


def test_seconds_and_samples_of_any_broadcast_shape():
    rows = [0.0, np.array([US, 2 * US]), np.full((3, 1), NS), np.ones((3, 2))]
    durations = Durations.from_seconds(rows)
    assert durations.num_samples == 3
    assert durations.dense(2).shape == (4, 3, 2)
    np.testing.assert_array_equal(durations.dense(2)[1], np.broadcast_to([10**6, 2 * 10**6], (3, 2)))
    block = Durations.from_seconds(to_seconds(durations.dense(2)))
    np.testing.assert_array_equal(block.dense(2), durations.dense(2))


def test_same_compiled_program_with_other_seconds():
    compiled = vector.compile(of(Run("compute", ()), Wait("comm", "compute"), Run("comm", ())))
    for scale in (1, 5):
        seconds = np.zeros((3, 1, 2))
        seconds[[0, 2]] = scale * NS
        assert vector.run(compiled, Durations.from_seconds(seconds)).makespan_ps == [scale * 2000]


def test_half_picoseconds_go_to_even():
    np.testing.assert_array_equal(to_ps(np.array([0.5, 1.5, 2.5, 3.5]) / PS_PER_S), [0, 2, 2, 4])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e7])
def test_seconds_beyond_the_clock_are_refused(bad):
    with pytest.raises(ValueError, match="accepted: finite, below"):
        to_ps(np.array([0.0, bad]))
    with pytest.raises(ValueError, match="accepted: finite, below"):
        Durations.from_seconds(np.full((1, 1, 2), bad))


def test_sums_beyond_the_clock_are_refused():
    with pytest.raises(ValueError, match="add up to more than"):
        durations_ps(of(*[Run("compute", (part(3e6),))] * 2))
    with pytest.raises(ValueError, match="add up to more than"):
        Durations.from_seconds(np.full((4, 1, 2), 3e6))


def test_negative_and_misshaped_rows_are_refused():
    with pytest.raises(ValueError, match="got a duration of -1 ps"):
        Durations.from_rows([np.array([[3, -1]])])
    with pytest.raises(ValueError, match="got a duration of"):
        Durations.from_seconds(np.full((1, 1, 1), -US))
    with pytest.raises(ValueError, match=r"got rows \[1, 2\] of other shape or type"):
        Durations.from_rows([np.zeros((1, 1), np.int64), np.zeros(2, np.int64), np.zeros((1, 1))])
    with pytest.raises(ValueError, match=r"sample axes \[2, 3\]"):
        Durations.from_rows([np.zeros((2, 1), np.int64), np.zeros((3, 1), np.int64)])


def test_draws_must_cover_the_families():
    program = of(Run("compute", (part(US, family="gemm", sigma=0.1),)))
    with pytest.raises(ValueError, match=r"no errors drawn for family 'gemm'; drawn: \['moe'\]"):
        durations_ps(program, {"moe": np.zeros(2)})
    with pytest.raises(ValueError, match=r"lengths \[1, 2\]"):
        durations_ps(program, {"gemm": np.zeros(2), "moe": np.zeros(1)})
