"""FSMoE's regimes against a schedule of the same tasks on three resources."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.training.papers.fsmoe import (
    Chunk,
    Layers,
    Linear,
    Machine,
    four_cases,
    idle_s,
    one_channel,
    schedules,
)

DEGREES = range(1, 9)


def _simulated(chunk: Chunk, reduce_s: float = 0.0) -> float:
    """End of a pass when every resource takes its tasks in order: written from the paper's figure 3d."""
    r, links, node, device = chunk.degree, 0.0, 0.0, 0.0
    arrived, computed, scattered = [], [], []
    for _ in range(r):
        links += float(chunk.exchange)
        arrived.append(links)
    links += reduce_s
    for i in range(r):
        node = max(node, arrived[i]) + float(chunk.gather)
        device = max(device, node) + float(chunk.experts)
        computed.append(device)
        if i:
            node = max(node, computed[i - 1]) + float(chunk.scatter)
            scattered.append(node)
    scattered.append(max(node, computed[-1]) + float(chunk.scatter))
    for end in scattered:
        links = max(links, end) + float(chunk.exchange)
    return links


def _chunk(degree: int, exchange: float, gather: float, experts: float) -> Chunk:
    return Chunk(degree, *(np.array(value) for value in (exchange, gather, gather, experts)))


@pytest.mark.parametrize("degree", DEGREES)
@pytest.mark.parametrize(
    ("exchange", "gather", "experts"), [(1.0, 0.1, 20.0), (10.0, 0.1, 0.2), (0.1, 10.0, 0.1)]
)
def test_where_one_resource_rules_the_regimes_are_exact(
    degree: int, exchange: float, gather: float, experts: float
) -> None:
    chunk = _chunk(degree, exchange, gather, experts)
    assert float(four_cases(chunk)) == pytest.approx(_simulated(chunk), rel=0.05)


def test_gradients_are_free_up_to_the_idle_time_of_the_links() -> None:
    chunk = _chunk(4, 1.0, 0.5, 6.0)
    free = float(idle_s(chunk))
    assert free > 0
    assert float(four_cases(chunk, free)) == float(four_cases(chunk))
    assert float(four_cases(chunk, free + 3.0)) == pytest.approx(float(four_cases(chunk)) + 3.0)
    assert _simulated(chunk, free) == pytest.approx(_simulated(chunk), rel=0.05)


def test_schedules_only_get_quicker() -> None:
    rng = np.random.default_rng(3)
    one = Linear(1e-4, 1e-10)
    machine = Machine(Linear(5e-5, 2e-14), one, one, one, one)
    sizes = [rng.uniform(1e6, 1e8, 50) for _ in range(6)]
    layers = Layers(sizes[0], sizes[1] * 1e3, np.full(50, 2.0), sizes[3] * 1e-10, sizes[4] * 1e-10, sizes[5])
    found = schedules(layers, machine, DEGREES)
    for slower, faster in (
        (found.tutel, found.tutel_improved),
        (found.tutel_improved, found.no_inter_intra),
        (found.no_inter_intra, found.fsmoe),
    ):
        assert np.all(faster <= slower * (1 + 1e-9))


def test_one_channel_at_degree_one_is_the_sum() -> None:
    chunk = _chunk(1, 1.0, 2.0, 3.0)
    assert float(one_channel(chunk)) == 2 * 1.0 + 2 * 2.0 + 3.0
