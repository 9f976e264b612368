"""Casts of training in narrow formats: what the products' own kernels hold of them is not counted twice."""

from dataclasses import dataclass

import pytest

from moesim.evidence import Estimate
from moesim.kernels.cost import FixedCost
from moesim.model.ops import Gemm, MemoryBound, Op
from moesim.training.backward import TrainCost

NARROW = Gemm("q", 4096.0, 1024, 512, "fp8", "bf16")


@dataclass(frozen=True)
class ByBytes(FixedCost):
    """Products take nothing, everything else a second a byte."""

    holds_cast: bool = False

    def op(self, op: Op) -> Estimate:
        moved = op.moved_bytes if isinstance(op, MemoryBound) else 0.0
        return Estimate(moved, "elementwise", "assumed", 0.0)

    def quantises(self, op: Gemm) -> bool:
        return self.holds_cast


@pytest.mark.parametrize(("holds", "bytes_each"), [(False, 2 + 1 + 1), (True, 1)])
def test_inputs_and_gradients_are_cast_once_along_rows_and_once_along_columns(holds, bytes_each):
    passes = TrainCost(ByBytes(0.0, holds_cast=holds), quantised=True).op(NARROW)
    assert passes.forward.seconds == pytest.approx(4096 * 512 * bytes_each)
    assert passes.input_gradient.seconds == pytest.approx(4096 * 1024 * bytes_each)


def test_wide_products_cast_nothing():
    passes = TrainCost(ByBytes(0.0)).op(NARROW)
    assert passes.forward.seconds == passes.input_gradient.seconds == 0.0
