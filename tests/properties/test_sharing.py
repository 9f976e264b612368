"""Laws of shared links: rates are those of plain progressive filling, and links hold what they can."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.engine import Demand, Meet, Part, Program, Run, Wait, durations_ps, events, vector
from moesim.engine.sharing import Paths, finish_times_s, max_min_rates
from moesim.evidence import Estimate
from moesim.units import PS_PER_S


@st.composite
def graphs(draw):
    num_links = draw(st.integers(1, 7))
    capacity = draw(st.lists(st.floats(0.1, 50), min_size=num_links, max_size=num_links))
    path = st.lists(st.integers(0, num_links - 1), min_size=1, max_size=num_links, unique=True)
    links = draw(st.lists(path.map(tuple), min_size=1, max_size=10))
    limit = draw(st.lists(st.floats(0.05, 60), min_size=len(links), max_size=len(links)))
    return links, np.array(capacity), np.array(limit)


def filled(links, capacity, limit):
    """Reference: raise all unfrozen flows together until the nearest link or limit, freeze, repeat."""
    rate, frozen = [0.0] * len(links), [False] * len(links)
    while not all(frozen):
        used = [
            sum(r for r, own in zip(rate, links, strict=True) if link in own) for link in range(len(capacity))
        ]
        rising = [
            sum(link in own and not f for own, f in zip(links, frozen, strict=True))
            for link in range(len(capacity))
        ]
        steps = [(capacity[k] - used[k]) / n for k, n in enumerate(rising) if n]
        steps += [top - r for top, r, f in zip(limit, rate, frozen, strict=True) if not f]
        rate = [r if f else r + min(steps) for r, f in zip(rate, frozen, strict=True)]
        used = [
            sum(r for r, own in zip(rate, links, strict=True) if link in own) for link in range(len(capacity))
        ]
        full = [capacity[k] - used[k] <= 1e-9 * capacity[k] for k in range(len(capacity))]
        frozen = [
            f or r >= top * (1 - 1e-9) or any(full[k] for k in own)
            for f, r, top, own in zip(frozen, rate, limit, links, strict=True)
        ]
    return np.array(rate)


@given(graphs())
@settings(max_examples=80)
def test_rates_equal_plain_progressive_filling(graph):
    links, capacity, limit = graph
    rates = max_min_rates(Paths.of(links), capacity, limit=limit)
    np.testing.assert_allclose(rates, filled(links, capacity, limit), rtol=1e-6)


@given(graphs())
@settings(max_examples=50)
def test_no_link_carries_more_than_it_can_and_every_flow_has_a_reason_to_stop(graph):
    links, capacity, limit = graph
    paths = Paths.of(links)
    rates = max_min_rates(paths, capacity, limit=limit)
    used = paths.used(rates, len(capacity))
    assert (used <= capacity * (1 + 1e-9)).all()
    for own, rate, top in zip(links, rates, limit, strict=True):
        rivals = [max(r for r, other in zip(rates, links, strict=True) if k in other) for k in own]
        bottleneck = any(
            used[k] >= capacity[k] * (1 - 1e-8) and rate >= fastest * (1 - 1e-8)
            for k, fastest in zip(own, rivals, strict=True)
        )
        assert bottleneck or rate >= top * (1 - 1e-8)


@given(graphs(), st.integers(1, 4))
@settings(max_examples=50)
def test_a_class_is_as_many_equal_flows(graph, copies):
    links, capacity, limit = graph
    single = max_min_rates(Paths.of(links), capacity, limit=limit, weight=np.full(len(links), float(copies)))
    many = max_min_rates(Paths.of(links * copies), capacity, limit=np.tile(limit, copies))
    np.testing.assert_allclose(many, np.tile(single, copies), rtol=1e-7)


@given(graphs())
@settings(max_examples=50)
def test_fluid_makespan_is_at_least_the_busiest_link_and_everything_is_moved(graph):
    links, capacity, amount = graph
    paths = Paths.of(links)
    finish = finish_times_s(paths, capacity, amount)
    bound = (paths.used(amount, len(capacity)) / capacity).max()
    assert finish.max() >= bound * (1 - 1e-6)
    assert (finish > 0).all()


def test_full_rate_all_to_all_ends_with_its_busiest_port():
    """On a full-rate fabric the closed form and the fluid makespan are one."""
    rng, ranks = np.random.default_rng(3), 16
    traffic = rng.gamma(2.0, 1e6, (ranks, ranks)) * ~np.eye(ranks, dtype=bool)
    source, destination = np.nonzero(traffic)
    paths = Paths.of([(s, ranks + d) for s, d in zip(source, destination, strict=True)])
    finish = finish_times_s(paths, np.full(2 * ranks, 50e9), traffic[source, destination])
    bound = max(traffic.sum(0).max(), traffic.sum(1).max()) / 50e9
    assert finish.max() == pytest.approx(bound, rel=0.01)


def part(seconds):
    return (Part("copy", "copy", Estimate(seconds, "copy", "assumed", 0.0)),)


def demand(capacity, links, rate):
    return Demand(
        capacity, np.array(links, dtype=np.int64).reshape(len(rate), -1), np.array(rate, dtype=float)
    )


def test_two_transfers_on_one_link_share_it_until_one_leaves():
    """3 s and 1 s alone: at half speed together for 2 s, then the rest of the longer one alone."""
    capacity = np.array([10.0])
    both = demand(capacity, [[0], [0]], [10.0, 10.0])
    program = Program(2, ("copy",), (Run("copy", part(np.array([3.0, 1.0])), demand=both),))
    run = events.simulate(program, durations_ps(program))
    assert (run.clocks_ps[0] / PS_PER_S).tolist() == [4.0, 2.0]


def test_a_late_transfer_slows_an_early_one():
    capacity = np.array([10.0])
    first = demand(capacity, [[0], [-1]], [10.0, 0.0])
    second = demand(capacity, [[-1], [0]], [0.0, 10.0])
    instructions = (
        Run("copy", part(4.0), ranks=np.array([True, False]), demand=first),
        Run("copy", part(2.0), ranks=np.array([False, True])),
        Run("copy", part(1.0), ranks=np.array([False, True]), demand=second),
    )
    program = Program(2, ("copy",), instructions)
    run = events.simulate(program, durations_ps(program))
    # alone until 2 s, shared until the second has made up 1 s at half speed, alone again
    assert (run.clocks_ps[0] / PS_PER_S).tolist() == [5.0, 4.0]


def test_a_link_with_room_slows_nobody():
    capacity = np.array([20.0])
    both = demand(capacity, [[0], [0]], [10.0, 10.0])
    shared = Program(2, ("copy",), (Run("copy", part(1.5), demand=both),))
    alone = Program(2, ("copy",), (Run("copy", part(1.5)),))
    assert (
        events.simulate(shared, durations_ps(shared)).makespan_ps
        == events.simulate(alone, durations_ps(alone)).makespan_ps
    )


def test_gradients_slow_a_dispatch_and_both_know():
    """An all-reduce on one stream and a dispatch on the other, over the same ports."""
    capacity = np.array([50.0, 50.0])
    ports = [[0], [1]]
    group = np.zeros(2, dtype=np.int64)
    instructions = (
        Meet("gradients", group, part(2.0), demand=demand(capacity, ports, [50.0, 50.0])),
        Meet("dispatch", group, part(1.0), demand=demand(capacity, ports, [25.0, 25.0])),
        Wait("dispatch", on="gradients"),
    )
    program = Program(2, ("gradients", "dispatch"), instructions)
    run = events.simulate(program, durations_ps(program))
    # fair halves of 25: the dispatch keeps its full rate, the all-reduce runs at half speed beside it
    ends = run.recorded.ends_ps[:, 0, 0] / PS_PER_S
    assert ends[:2].tolist() == [2.5, 1.0]


def test_vector_interpreter_refuses_shared_links():
    both = demand(np.array([1.0]), [[0]], [1.0])
    with pytest.raises(ValueError, match="links"):
        vector.compile(Program(1, ("copy",), (Run("copy", part(1.0), demand=both),)))


@pytest.mark.parametrize(
    ("capacity", "links", "rate", "said"),
    [
        ([0.0], [[0]], [1.0], "without capacity"),
        ([1.0], [[1]], [1.0], "accepted: -1 to 0"),
        ([1.0], [[0]], [0.0], "rate of 0"),
    ],
)
def test_wrong_demands_are_told(capacity, links, rate, said):
    wrong = demand(np.array(capacity), links, rate)
    with pytest.raises(ValueError, match=said):
        Program(1, ("copy",), (Run("copy", part(1.0), demand=wrong),)).check()


def test_members_of_a_collective_leave_at_their_own_time_of_one_transfer():
    capacity = np.array([10.0, 10.0])
    group = np.zeros(2, dtype=np.int64)
    one = demand(capacity, [[0], [1]], [10.0, 10.0])
    alone = Program(2, ("comm",), (Meet("comm", group, part(np.array([1.0, 2.0])), demand=one),))
    assert (events.simulate(alone, durations_ps(alone)).clocks_ps[0] / PS_PER_S).tolist() == [1.0, 2.0]
    beside = (
        *alone.instructions,
        Run(
            "copy",
            part(2.0),
            ranks=np.array([True, False]),
            demand=demand(capacity, [[0], [-1]], [10.0, 0.0]),
        ),
    )
    both = Program(2, ("comm", "copy"), beside)
    # the copy halves the first link, and with it the pace of the whole collective
    clocks = events.simulate(both, durations_ps(both)).clocks_ps / PS_PER_S
    assert clocks[0].tolist() == [2.0, 4.0]
    assert clocks[1, 0] == 4.0
