"""Collectives of sharded states beside a pass: shares of ports and multiprocessors, and what that lasts."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.engine.program import Part
from moesim.evidence import Estimate
from moesim.network.crowding import PortUse, ring_bytes, speeds
from moesim.scenario.training import build_training
from moesim.training.blocks import Block
from moesim.training.crowd import Crowd, overlapped_s
from moesim.training.items import Link
from moesim.training.states import States
from moesim.training.step import TrainStep
from tests.training.test_step import scenario


def part(seconds, family="gemm"):
    return Part("it", "compute", Estimate(seconds, family, "assumed", 0.0))


def test_ports_are_shared_max_min_fairly():
    up, out = PortUse(scale_up=1.0), PortUse(scale_out=1.0)
    assert speeds(up, up) == (0.5, 0.5)
    assert speeds(up, PortUse(scale_up=0.25)) == (0.75, 1.0)
    assert speeds(up, out) == speeds(PortUse(), out) == (1.0, 1.0)
    # the one that uses both ports is held up by the port that the other fills
    assert speeds(PortUse(0.4, 1.0), out) == (0.5, 0.5)


def test_rings_between_nodes_spread_over_the_ports_of_each():
    fabric = build_training(scenario()).setup.work.fabric
    members = np.arange(fabric.num_ranks)
    up, out = ring_bytes(8.0, members, fabric)
    domains = len(np.unique(fabric.domain))
    assert out == pytest.approx(8.0 * (1 - 1 / len(members)) * domains / len(members) * (domains > 1))
    assert up + out == pytest.approx(8.0 * (1 - 1 / len(members)))


def test_work_misses_multiprocessors_and_exchanges_their_ports():
    crowd = Crowd(PortUse(scale_out=1.0), sms_fraction=0.2, memory_fraction=0.0)
    link = Link(part(1.0), part(1.0), "dispatch", True, False, use=PortUse(scale_out=1.0))
    block = Block((part(4.0),), 1.0, link, part(1.0, "all_to_all"))
    [slow] = crowd.beside([block])
    assert slow.work[0].estimate.seconds == pytest.approx(5.0)
    assert slow.moved.estimate.seconds == pytest.approx(2.0)
    assert crowd.lost_s([block]) == pytest.approx(1.0)


@pytest.mark.parametrize("collectives", [0.0, 2.0, 5.0, 6.0, 6.5, 20.0])
def test_whoever_is_left_goes_on_alone(collectives):
    """Beside small steps of time: 4 s of work at 0.8 of its speed, 1 s of an exchange at half."""
    work, exchange, layers = 4.0, 1.0, 1000
    now, left = 0.0, collectives
    for _ in range(layers):
        for own, speed, other in ((work / layers, 0.8, 1.0), (exchange / layers, 0.5, 0.5)):
            together = min(own / speed, left / other)
            left -= together * other
            now += together + (own - together * speed)
    expected = now + left
    alone, crowded = np.array(work + exchange), np.array(work / 0.8 + exchange / 0.5)
    found = float(overlapped_s(alone, crowded, exchange / 0.5 * 0.5, np.array(collectives)))
    assert found == pytest.approx(expected, rel=1e-3)


def test_sharded_weights_cost_between_the_longer_and_both():
    setup = build_training(scenario()).setup
    setup = replace(setup, states=States(sharding="fsdp"))
    step = TrainStep(setup)
    alone = TrainStep(replace(setup, states=States())).run().busy_s
    behind = TrainStep(replace(setup, overlap_gather=False)).run().busy_s
    beside = step.run().busy_s
    assert (beside > alone).all()
    assert (beside < behind).all()
    crowd = step._states[0].crowd
    assert 0 < crowd.use.scale_out <= 1 or 0 < crowd.use.scale_up <= 1
    assert 0 < crowd.sms_fraction < 0.3
