"""Remedies of a training plan that does not fit, checked by applying them."""

import re
from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InfeasibleError
from moesim.model import Dtypes, load
from moesim.parallel.train_plan import TrainPlan
from moesim.training.memory import Demand, train_ledger
from moesim.training.memory_remedy import check, remedies
from moesim.training.recompute import Recompute
from moesim.training.states import States
from moesim.units import GIB

CAPACITY = 80 * GIB


def demand(plan, **changed):
    model = load("qwen3_30b_a3b")
    layers = np.array_split(np.arange(model.num_layers), plan.pp)
    layout = tuple(tuple(part.tolist()) for part in layers)
    part_of = np.arange(plan.pp)[:, None]
    flight = np.arange(plan.pp, 0, -1, dtype=float)[:, None]
    base = Demand(model, plan, Dtypes(), States(), Recompute(), layout, part_of, flight, 1, 4096)
    return replace(base, **changed)


def test_what_fits_gives_the_ledger():
    assert check(demand(TrainPlan(dp=16, ep=16)), capacity_bytes=CAPACITY).fits


def test_what_does_not_fit_says_need_have_and_remedies():
    tight = demand(TrainPlan(dp=16, ep=16), micro_batch_size=2)
    with pytest.raises(InfeasibleError) as caught:
        check(tight, capacity_bytes=CAPACITY)
    text = str(caught.value)
    assert re.search(r"1 of 1 stages are over; stage 0 needs \d+\.?\d* GiB, has 80.0 GiB", text)
    assert "micro_batch_size=1" in text
    assert "expert activations" in text


def applied(base, text):
    """The demand that a remedy's words describe."""
    name, value = re.match(r"([\w.]+)=([\w.,]+)", text).groups()
    room, _, field = name.rpartition(".")
    if room == "plan":
        changed = {field: int(value)} | {k: int(v) for k, v in re.findall(r"\b(dp)=(\d+)", text)}
        return replace(base, plan=replace(base.plan, **changed))
    if room == "states":
        pairs = re.findall(r"states\.(\w+)=([\w.]+)", text)
        fields = {k: float(v) if k == "offload_fraction" else v for k, v in pairs}
        return replace(base, states=replace(base.states, **fields))
    if field == "modules":
        return replace(base, recompute=Recompute("selective", tuple(value.split(","))))
    if field == "granularity":
        return replace(base, recompute=Recompute(value))
    return replace(base, **{field: int(value)})


@pytest.mark.parametrize("size", [2, 4])
def test_every_remedy_fits_when_it_is_applied(size):
    tight = demand(TrainPlan(dp=16, ep=8), micro_batch_size=size)
    found = [text for text in remedies(tight, CAPACITY) if "mean tokens" not in text]
    assert len(found) >= 2
    for text in found:
        assert train_ledger(applied(tight, text), capacity_bytes=CAPACITY).fits, text


def test_more_stages_are_tried_where_the_schedule_is_known():
    tight = demand(TrainPlan(dp=2, ep=2, pp=2), recompute=Recompute("full"), states=States("none"))
    assert not train_ledger(tight, capacity_bytes=CAPACITY).fits
    again = {"recompute": tight.recompute, "states": tight.states}
    without = remedies(tight, CAPACITY)
    having = remedies(tight, CAPACITY, lambda plan: demand(plan, **again))
    more = [text for text in having if text.startswith("plan.pp=")]
    assert not [text for text in without if text.startswith("plan.pp=")]
    assert len(more) == 1
    stages = int(re.match(r"plan.pp=(\d+)", more[0]).group(1))
    assert not train_ledger(demand(replace(tight.plan, pp=stages - 1), **again), capacity_bytes=CAPACITY).fits


def test_balance_is_a_remedy_where_load_is_the_cause():
    tight = demand(TrainPlan(dp=16, ep=16), expert_overload=3.0)
    found = [text for text in remedies(tight, CAPACITY) if "mean tokens" in text]
    bound = float(re.search(r"at most ([\d.]+) times", found[0]).group(1))
    assert 1 <= bound < 3
    assert train_ledger(replace(tight, expert_overload=bound), capacity_bytes=CAPACITY).fits


def test_nothing_helps_a_model_that_is_far_too_large():
    with pytest.raises(InfeasibleError, match="no single change"):
        check(demand(TrainPlan()), capacity_bytes=GIB)
