"""The search over training plans against trying everything, with an estimator that is a formula."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InfeasibleError, InputError
from moesim.model.load import load
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import schedules
from moesim.training.tuning import Candidate, Space, search

MODEL = load("qwen3_30b_a3b")
LIGHT, HEAVY = Recompute(), Recompute("full")
SPACE = Space(
    num_devices=64,
    global_batch=256,
    tp=(1, 2, 4),
    pp=(1, 2, 4, 8),
    vpp=(1, 2),
    ep=(4, 8, 16),
    micro_batch=(1, 2),
    recompute=(LIGHT, HEAVY),
)


@dataclass
class Formula:
    """A made-up machine: pipelines have bubbles, tensor parallelism costs, microbatches need memory."""

    bound_fraction: float = 0.0
    refused_tp: int = 0
    asked: int = 0

    def peak_bytes(self, candidate: Candidate) -> float:
        if candidate.plan.tp == self.refused_tp:
            raise InputError.at("plan.tp", self.refused_tp, "another one")
        plan = candidate.plan
        weights = 100 / (plan.tp * plan.pp) + 400 / (plan.pp * plan.ep)
        kept = 1 if candidate.recompute.granularity == "full" else 8
        return weights + kept * candidate.micro_batch * min(plan.pp, candidate.num_microbatches) / plan.tp

    def least_seconds(self, candidate: Candidate) -> float:
        return self.bound_fraction * self._seconds(candidate)

    def seconds(self, candidate: Candidate) -> float:
        self.asked += 1
        return self._seconds(candidate)

    def _seconds(self, candidate: Candidate) -> float:
        plan = candidate.plan
        bubble = (plan.pp - 1) / (candidate.num_microbatches * plan.vpp)
        again = 1.33 if candidate.recompute.granularity == "full" else 1.0
        exchange = 1 + 0.1 * plan.ep**0.5 + 0.2 * (plan.tp - 1) + 0.1 / candidate.micro_batch
        return again * (1 + bubble) * exchange


def everything(space: Space, estimator: Formula, capacity_bytes: float) -> list[tuple[float, Candidate]]:
    """Every plan that fits, with any recomputation, fastest first."""
    sized = [
        replace(candidate, recompute=policy)
        for candidate in (
            f.candidate for f in search(space, MODEL, estimator, capacity_bytes=1e9, keep=10**6).best
        )
        for policy in space.recompute
    ]
    fitting = [c for c in sized if estimator.peak_bytes(c) <= capacity_bytes]
    return sorted(((estimator._seconds(c), c) for c in fitting), key=lambda pair: pair[0])


@pytest.mark.parametrize("capacity_bytes", [40.0, 60.0, 200.0])
def test_best_is_the_best_of_everything(capacity_bytes):
    found = search(SPACE, MODEL, Formula(), capacity_bytes=capacity_bytes)
    expected = everything(SPACE, Formula(), capacity_bytes)
    assert found.best[0].seconds == expected[0][0]
    assert [one.seconds for one in found.best] == sorted(one.seconds for one in found.best)
    assert all(one.peak_bytes <= capacity_bytes for one in found.best)


@given(st.floats(0, 1), st.integers(1, 20))
@settings(max_examples=10, deadline=None)
def test_a_bound_changes_the_work_and_not_the_answer(bound_fraction, keep):
    plain = search(SPACE, MODEL, Formula(), capacity_bytes=60.0, keep=keep)
    bounded = search(SPACE, MODEL, Formula(bound_fraction), capacity_bytes=60.0, keep=keep)
    assert [one.seconds for one in bounded.best] == [one.seconds for one in plain.best]
    assert bounded.num_timed <= plain.num_timed


def test_a_good_bound_saves_work():
    estimator = Formula(bound_fraction=0.95)
    found = search(SPACE, MODEL, estimator, capacity_bytes=60.0)
    assert estimator.asked == found.num_timed < search(SPACE, MODEL, Formula(), capacity_bytes=60.0).num_timed
    assert found.left_out["cannot be among the best"] > 0


def test_every_combination_is_accounted_for():
    found = search(SPACE, MODEL, Formula(refused_tp=2), capacity_bytes=60.0)
    sizes = [
        len(getattr(SPACE, name))
        for name in ("tp", "cp", "pp", "vpp", "ep", "etp", "micro_batch", "schedules")
    ]
    combinations = 1
    for size in sizes:
        combinations *= size
    assert found.num_plans == combinations == found.num_timed + sum(found.left_out.values())
    assert found.left_out["plan.tp is not accepted"] > 0
    for one in found.best:
        assert one.candidate.plan.num_devices == 64
        assert one.candidate.plan.dp * one.candidate.micro_batch * one.candidate.num_microbatches == 256
        assert not schedules.build(one.candidate.schedule).problems(one.candidate.geometry)


def test_processes_do_not_change_the_answer():
    space = replace(SPACE, tp=(1, 4), pp=(2, 4))
    alone = search(space, MODEL, Formula(), capacity_bytes=60.0)
    assert search(space, MODEL, Formula(), capacity_bytes=60.0, jobs=2) == alone


def test_recomputes_only_where_it_must():
    found = search(SPACE, MODEL, Formula(), capacity_bytes=60.0, keep=1000)
    chosen = {one.candidate.recompute.granularity for one in found.best}
    assert chosen == {"none", "full"}
    for one in found.best:
        if one.candidate.recompute == HEAVY:
            assert Formula().peak_bytes(replace(one.candidate, recompute=LIGHT)) > 60.0


def test_nothing_fits_tells_the_least_need():
    with pytest.raises(InfeasibleError, match=r"none of \d+ plans fits: need at least .* have 1.00 B"):
        search(SPACE, MODEL, Formula(), capacity_bytes=1.0)


def test_a_space_without_a_plan_tells_why():
    with pytest.raises(InputError, match="tp \\* cp \\* pp does not divide the devices"):
        search(replace(SPACE, num_devices=7, tp=(2,), pp=(4,)), MODEL, Formula(), capacity_bytes=1.0)


def test_table_names_what_is_chosen():
    row = search(SPACE, MODEL, Formula(), capacity_bytes=60.0).rows()[0]
    assert row["tp"] * row["cp"] * row["dp"] * row["pp"] == 64
    assert {"schedule", "recompute", "peak_bytes", "step_s", "num_microbatches"} <= set(row)
