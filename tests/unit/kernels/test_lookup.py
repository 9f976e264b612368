"""A tabulated weight shape answers as the cost model does."""

import pytest

from moesim.errors import InputError
from moesim.hardware import load_device
from moesim.kernels.cost import RooflineCost
from moesim.kernels.lookup import GemmLookup
from moesim.model.ops import Gemm


def test_lookup_equals_the_cost_model():
    cost = RooflineCost(load_device("h100_sxm"))
    op = Gemm("g", 1.0, 4096, 2048, "bf16", "bf16")
    lookup = GemmLookup.of(cost, op, most_rows=300)
    for rows in (0, 1, 17, 300):
        one = Gemm("g", float(rows), 4096, 2048, "bf16", "bf16")
        assert lookup.seconds(rows) == pytest.approx(float(cost.op(one).seconds))
    assert lookup.estimate.grade == "roofline"
    for rows in (-1, 301):
        with pytest.raises(InputError, match="0 to 300"):
            lookup.seconds(rows)
