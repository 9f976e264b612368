import numpy as np
import pytest

from moesim.engine import vector
from moesim.engine.durations import durations_ps
from moesim.engine.program import Part, Program
from moesim.evidence import Estimate
from moesim.steps.block import STREAMS, Block, Exchange
from moesim.steps.overlap import overlap_policies
from moesim.units import PS_PER_S

RANKS = 4


def part(name, seconds, kind="compute"):
    return Part(name, kind, Estimate(seconds, name, "assumed", 0.0))


def blocks(work_s, exchange_s, count, tail_s=0.0):
    group = np.zeros(RANKS, dtype=np.int64)
    made = [
        Block(i, (part("work", work_s),), Exchange(part("exchange", exchange_s, "all_to_all"), group))
        for i in range(count)
    ]
    return [*made, Block(None, (part("tail", tail_s),))]


def makespan_s(policy, halves):
    program = Program(RANKS, STREAMS, tuple(policy.weave(halves, None)))
    return float(vector.run(vector.compile(program), durations_ps(program)).makespan_ps[0]) / PS_PER_S


def test_without_overlap_everything_adds_up():
    assert makespan_s(overlap_policies.build("none"), [blocks(2.0, 3.0, 5, 1.0)]) == pytest.approx(
        5 * 5.0 + 1.0
    )


def test_two_batches_hide_a_shorter_exchange_completely():
    halves = [blocks(2.0, 1.0, 6), blocks(2.0, 1.0, 6)]
    # compute never waits but for the last half's last exchange
    assert makespan_s(overlap_policies.build("two_batch"), halves) == pytest.approx(2 * 6 * 2.0 + 1.0)


def test_two_batches_are_bound_by_a_longer_exchange():
    halves = [blocks(1.0, 3.0, 6), blocks(1.0, 3.0, 6)]
    # after the first work the link is never idle
    assert makespan_s(overlap_policies.build("two_batch"), halves) == pytest.approx(1.0 + 2 * 6 * 3.0)


@pytest.mark.parametrize("name", overlap_policies.names())
def test_contract_every_policy_keeps_work_and_order(name):
    policy = overlap_policies.build(name)
    halves = [blocks(1.0, 0.5, 4, 0.25) for _ in range(policy.num_batches)]
    total = policy.num_batches * (4 * 1.5 + 0.25)
    serial_lane = 4 * 1.5 + 0.25
    assert serial_lane - 1e-9 <= makespan_s(policy, halves) <= total + 1e-9
