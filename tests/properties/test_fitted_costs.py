"""Laws of the fitted cost model, on the fits that are shipped."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.hardware import load_device
from moesim.kernels.choose import cost_of
from moesim.kernels.fitted import FittedCost
from moesim.kernels.histogram import ExpertLoad
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, GroupedExperts

COST = cost_of(load_device("h100_sxm"))
EXPERTS = GroupedExperts("e", 2048, 768, True, "bf16", "bf16", 16, 8)
COUNTS = st.lists(st.integers(0, 3000), min_size=16, max_size=16)
TOKENS = st.integers(1, 60000)


def ops(rows, sequences, context):
    return [
        Gemm("g", rows, 4096, 2048, "bf16", "bf16"),
        Gemm("g", rows, 1536, 7168, "fp8", "bf16"),
        AttentionPrefill("p", sequences, rows, context, 32, 8, 128, 128, "bf16", "bf16"),
        AttentionDecode("d", sequences, context, 1.0, 32, 8, 128, 128, 4096.0, "bf16", "bf16"),
        AttentionDecode("m", sequences, context, 1.0, 128, 1, 576, 512, 1152.0, "bf16", "bf16"),
    ]


def test_shipped_fits_are_used():
    assert isinstance(COST, FittedCost)
    assert COST.op(ops(16.0, 4.0, 100.0)[0]).grade == "fitted"


@given(st.lists(st.tuples(TOKENS, st.integers(1, 200), TOKENS), min_size=1, max_size=5))
@settings(max_examples=25)
def test_a_batch_is_its_elements(shapes):
    batch = [np.array(column, dtype=float) for column in zip(*shapes, strict=True)]
    for together, *alone in zip(ops(*batch), *(ops(*map(float, shape)) for shape in shapes), strict=True):
        seconds = COST.op(together).seconds
        assert np.isfinite(seconds).all()
        assert seconds == pytest.approx([COST.op(one).seconds for one in alone])
        assert (seconds > 0).all()


@given(COUNTS, st.randoms(use_true_random=False))
@settings(max_examples=40)
def test_which_expert_is_busy_does_not_matter(counts, random):
    shuffled = list(counts)
    random.shuffle(shuffled)
    load = ExpertLoad.of(np.array([counts, shuffled]))
    first, second = COST.experts(EXPERTS, load).seconds
    assert first == pytest.approx(second)
    assert (first == 0) == (sum(counts) == 0)


@given(COUNTS)
@settings(max_examples=40)
def test_twice_the_tokens_never_take_less_nor_much_more_than_twice(counts):
    load = ExpertLoad.of(np.array([counts, [2 * c for c in counts]]))
    once, twice = COST.experts(EXPERTS, load).seconds
    # the kernel's own switch of configuration makes small steps down possible
    assert 0.8 * once <= twice <= 2.2 * once


@given(TOKENS, TOKENS)
@settings(max_examples=40)
def test_more_context_is_never_faster(left, right):
    short, long = sorted((left, right))
    for a, b in zip(ops(64.0, 32.0, float(short))[2:], ops(64.0, 32.0, float(long))[2:], strict=True):
        # a split more may fill the units better: a few percent down is physical
        assert COST.op(b).seconds >= 0.85 * COST.op(a).seconds


@given(TOKENS, st.integers(1, 200), TOKENS)
@settings(max_examples=25)
def test_sigma_is_a_sigma(rows, sequences, context):
    for op in ops(float(rows), float(sequences), float(context)):
        assert 0.02 <= COST.op(op).sigma < 2.0
