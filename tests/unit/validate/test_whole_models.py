"""Measured steps: predicted with the routing they had, and with what the library adds to a step."""

from pathlib import Path

import numpy as np
import pytest

from moesim.kernels.measured import MeasuredTable
from moesim.validate.whole_models import predicted_steps, summary

MODEL = Path("calibration/models/mixtral_small")


def step_table(expert_tokens, context=0):
    shape = {"num_sequences": 4, "query_tokens": 1 if context else 8, "context_tokens": context}
    columns = {name: np.array([float(value)]) for name, value in shape.items()}
    words = {"model": "m", "phase": "decode" if context else "prefill", "expert_tokens": expert_tokens}
    columns |= {name: np.array([value]) for name, value in words.items()}
    return MeasuredTable("step", "epyc_2core_vm", "transformers", "fp32", columns, np.array([0.05]))


def predicted_s(table):
    (row,) = predicted_steps([table], "epyc_2core_vm_x1", {"m": MODEL}, {})
    assert row.low_s < row.predicted_s < row.high_s
    return row.predicted_s


@pytest.fixture(autouse=True)
def _in_repository(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[3])


def test_few_touched_experts_are_faster():
    spread = "|".join(["8 8 8 8 8 8 8 8"] * 5)
    few = "|".join(["32 32 0 0 0 0 0 0"] * 5)
    assert predicted_s(step_table(few)) < 0.7 * predicted_s(step_table(spread))


def test_joining_a_long_cache_costs_time():
    even = "|".join(["1 1 1 1 1 1 1 1"] * 5)
    short, long = (predicted_s(step_table(even, context)) for context in (128, 2048))
    assert long > 1.1 * short


def test_summary_of_nothing():
    assert summary([]) == {"n": 0}
