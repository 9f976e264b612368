import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.kernels.histogram import ExpertLoad
from moesim.kernels.roofline import grouped_gemm_s, roofline_s


def test_memory_bound_time_halves_exactly_with_twice_the_bandwidth():
    slow = roofline_s(1.0, 8e9, flops_per_s=1e15, bandwidth_bytes_per_s=1e12)
    fast = roofline_s(1.0, 8e9, flops_per_s=1e15, bandwidth_bytes_per_s=2e12)
    assert slow == 2 * fast


def test_nothing_to_do_costs_nothing_not_even_a_launch():
    np.testing.assert_array_equal(
        roofline_s(
            np.array([0.0, 1.0]),
            np.array([0.0, 0.0]),
            flops_per_s=1.0,
            bandwidth_bytes_per_s=1.0,
            launch_s=3.0,
        ),
        [0.0, 4.0],
    )


def test_histogram_counts_touched_experts_and_padding():
    load = ExpertLoad.of(np.array([[0, 1, 16, 17], [0, 0, 0, 0]]))
    np.testing.assert_array_equal(load.rows, [34, 0])
    np.testing.assert_array_equal(load.touched, [3, 0])
    np.testing.assert_array_equal(load.padded_rows[16], [16 + 16 + 32, 0])
    np.testing.assert_array_equal(load.padded_rows[128], [3 * 128, 0])


RATES = {"flops_per_s": 1e15, "bandwidth_bytes_per_s": 1e12, "tile_half_rows": 40.0}


def test_one_expert_with_one_full_tile_runs_at_the_full_rate():
    load = ExpertLoad.of(np.array([128]))
    got = grouped_gemm_s(load.padded_rows, 0.0, 4096, 4096, **RATES)
    assert got == pytest.approx(2 * 128 * 4096 * 4096 / 1e15)


def test_spreading_the_same_rows_over_more_experts_never_helps():
    packed = ExpertLoad.of(np.array([64, 0, 0, 0]))
    spread = ExpertLoad.of(np.array([16, 16, 16, 16]))
    args = (0.0, 4096, 4096)
    assert grouped_gemm_s(spread.padded_rows, *args, **RATES) >= grouped_gemm_s(
        packed.padded_rows, *args, **RATES
    )


@given(st.lists(st.integers(0, 600), min_size=1, max_size=8), st.integers(0, 7))
def test_one_more_row_is_never_faster(counts, index):
    more = list(counts)
    more[index % len(counts)] += 1
    before = grouped_gemm_s(ExpertLoad.of(np.array(counts)).padded_rows, 0.0, 256, 512, **RATES)
    after = grouped_gemm_s(ExpertLoad.of(np.array(more)).padded_rows, 0.0, 256, 512, **RATES)
    assert after >= before
