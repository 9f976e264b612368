"""Both interpreters on programs small enough to work out by hand, and the rules of an instant."""

import doctest
import time

import numpy as np
import pytest
from strategies import part_of_ps

from moesim.engine import (
    Durations,
    Meet,
    Program,
    Receive,
    Resource,
    Run,
    Send,
    Wait,
    durations_ps,
    groups,
    reference,
    vector,
)
from moesim.engine.events import Arbiter, Environment, Settled, simulate

STREAMS = ("compute", "comm")


def of(*instructions, num_ranks=2, streams=STREAMS):
    return Program(num_ranks, streams, instructions)


def run(stream, *duration_ps, **named):
    return Run(stream, (part_of_ps(duration_ps),), **named)


def both_clocks(program):
    """Final clocks ``[stream][rank]`` on which both interpreters agree."""
    durations = durations_ps(program)
    clocks = vector.run(vector.compile(program), durations).clocks_ps[:, 0].tolist()
    assert simulate(program, durations).clocks_ps.tolist() == clocks
    return clocks


def started(program):
    """Start of every instruction that takes part in the event interpreter, ``{(instruction, rank): ps}``."""
    recorded = simulate(program, durations_ps(program)).recorded
    found = np.argwhere(recorded.ends_ps[:, 0] >= 0).tolist()
    return {(i, r): int(recorded.starts_ps[i, 0, r]) for i, r in found}


@pytest.mark.parametrize("streams", [("compute",), STREAMS])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_empty_program_takes_no_time(num_ranks, streams):
    program = of(num_ranks=num_ranks, streams=streams)
    durations = durations_ps(program)
    ran = vector.run(vector.compile(program), durations, record=True)
    assert ran.makespan_ps.tolist() == [0] == [ran.recorded.makespan_ps()]
    assert simulate(program, durations).makespan_ps == 0
    assert reference.schedule(program, []) == {}


def test_one_rank_alone():
    program = of(run("compute", 5), Wait("comm", "compute"), run("comm", 2), run("compute", 4), num_ranks=1)
    assert both_clocks(program) == [[9], [7]]


def test_everything_of_no_duration():
    program = of(run("compute", 0, 0), Meet("comm", np.zeros(2, int), ()), Wait("compute", "comm"))
    assert both_clocks(program) == [[0, 0], [0, 0]]


def test_meeting_starts_with_the_last_and_each_leaves_alone():
    program = of(run("comm", 3, 8), Meet("comm", np.array([0, 0]), (part_of_ps([1, 4]),)))
    assert both_clocks(program) == [[0, 0], [9, 12]]


def test_wait_covers_what_was_issued_before_it_only():
    program = of(run("comm", 7, 1), Wait("compute", "comm"), run("comm", 100, 100), run("compute", 1, 1))
    assert both_clocks(program) == [[8, 2], [107, 101]]


def test_message_travels_and_sender_is_busy():
    to = np.array([1, -1])
    program = of(run("comm", 5, 0), Send("comm", to, (part_of_ps(3),)), Receive("compute", np.array([-1, 0])))
    assert both_clocks(program) == [[0, 8], [8, 0]]


def test_message_slots_are_not_shared_while_in_flight():
    """Three messages in flight; the middle one is read first and its slot reused by a fourth."""
    sends = [Send("comm", np.array([rank, -1, -1, -1, -1]), (part_of_ps(1),)) for rank in (1, 2, 3, 4)]

    def receive(rank):
        return Receive("compute", np.where(np.arange(5) == rank, 0, -1))

    program = of(*sends[:3], receive(2), sends[3], *(receive(r) for r in (4, 3, 1)), num_ranks=5)
    assert vector.compile(program).num_slots == 3
    assert both_clocks(program) == [[0, 1, 2, 3, 4], [4, 0, 0, 0, 0]]


def test_slots_are_free_again_when_every_rank_has_read():
    ranks = np.arange(6)
    shift = (
        Send("comm", np.where(ranks < 5, ranks + 1, -1), (part_of_ps(1),)),
        Receive("comm", np.where(ranks > 0, ranks - 1, -1)),
    )
    program = of(*shift * 4, num_ranks=6)
    assert vector.compile(program).num_slots == 1
    assert both_clocks(program)[1] == [4, 4, 4, 4, 4, 4]


def test_one_receive_takes_messages_of_several_sends():
    program = of(
        Send("comm", np.array([2, -1, -1]), (part_of_ps(3),)),
        Send("comm", np.array([-1, 0, -1]), (part_of_ps(9),)),
        Receive("compute", np.array([1, -1, 0])),
        num_ranks=3,
    )
    assert both_clocks(program) == [[9, 0, 3], [3, 9, 0]]


GROUPS = {
    "world": ("MEET_ALL", (0, 0, 0, 0, 0, 0, 0, 0)),
    "blocks": ("MEET_MESH", (5, 5, 1, 1, 0, 0, 3, 3)),
    "stripes": ("MEET_MESH", (0, 1, 2, 3, 0, 1, 2, 3)),
    "mesh": ("MEET_MESH", (0, 1, 0, 1, 2, 3, 2, 3)),
    "part of the ranks": ("MEET_MESH", (-1, -1, 4, 4, 6, 6, -1, -1)),
    "every other rank": ("MEET_MESH", (-1, 0, -1, 0, -1, 1, -1, 1)),
    "unequal": ("MEET_ANY", (0, 0, 0, 1, 1, 1, 1, 1)),
    "scattered": ("MEET_ANY", (0, 1, 1, 0, -1, 2, 0, 2)),
    "same label twice": ("MEET_ANY", (0, 0, 1, 1, 0, 0, 1, 1)),
}


@pytest.mark.parametrize("name", GROUPS)
def test_every_shape_of_groups(name):
    code, group = GROUPS[name][0], np.array(GROUPS[name][1])
    arrivals, lasting = np.array([3, 1, 4, 1, 5, 9, 2, 6]), np.array([2, 7, 1, 8, 2, 8, 1, 8])
    program = of(run("comm", *arrivals), Meet("comm", group, (part_of_ps(lasting),)), num_ranks=8)
    expected = [
        max(arrivals[group == label]) + lasting[rank] if label >= 0 else arrivals[rank]
        for rank, label in enumerate(group)
    ]
    assert both_clocks(program)[1] == expected
    assert vector.compile(program).ops[1].code.name == code


@pytest.mark.parametrize("mask", [(1, 1, 0, 0, 0), (0, 1, 0, 1, 0), (1, 1, 0, 1, 0), (0, 0, 0, 0, 1)])
def test_masks_leave_the_other_ranks_alone(mask):
    mask = np.array(mask, dtype=np.bool_)
    program = of(
        run("compute", 1, 2, 3, 4, 5),
        run("compute", 9, 9, 9, 9, 9, ranks=mask),
        Wait("comm", "compute", ranks=mask),
        num_ranks=5,
    )
    compute = np.arange(1, 6) + 9 * mask
    assert both_clocks(program) == [compute.tolist(), (compute * mask).tolist()]


def test_samples_share_one_pass():
    program = of(run("compute", 1, 1), Meet("compute", np.array([0, 0]), ()))
    rows = [np.array([[1, 5], [7, 2], [0, 0]]), np.array([[1], [2], [3]])]
    ran = vector.run(vector.compile(program), Durations.from_rows(rows))
    assert ran.makespan_ps.tolist() == [6, 9, 3]
    assert [simulate(program, Durations.from_rows(rows), sample=s).makespan_ps for s in range(3)] == [6, 9, 3]


def test_durations_of_another_program_are_refused():
    program, durations = of(run("compute", 1, 1)), durations_ps(of())
    with pytest.raises(ValueError, match="got 0 rows of durations for 1 instructions"):
        vector.run(vector.compile(program), durations)
    with pytest.raises(ValueError, match="got 0 rows of durations for 1 instructions"):
        simulate(program, durations)
    wide = Durations.from_rows([np.ones((1, 3), dtype=np.int64)])
    with pytest.raises(ValueError, match="3 ranks"):
        vector.run(vector.compile(program), wide)
    with pytest.raises(ValueError, match="3 ranks"):
        simulate(program, wide)


def test_vector_names_what_is_shared():
    program = of(run("comm", 1, 1, resource=Resource("pcie_h2d", np.array([0, 0]))))
    with pytest.raises(
        ValueError, match="shares pcie_h2d; the vector interpreter accepts no shared resources"
    ):
        vector.compile(program)


LINK = Resource("link", np.array([0, 0, 0]))


def test_ties_at_one_instant_go_to_the_lowest_rank():
    program = of(run("comm", 4, 4, 4, resource=LINK), num_ranks=3)
    assert started(program) == {(0, 0): 0, (0, 1): 4, (0, 2): 8}


def test_ties_hold_whichever_event_came_first():
    """Rank 2 reaches the link at 6 by one event, rank 0 by many: still rank 0 first."""
    program = of(
        run("compute", 2, 1, 6),
        run("compute", 2, 1, 0),
        run("compute", 2, 1, 0),
        run("compute", 5, 5, 5, resource=LINK),
        num_ranks=3,
    )
    assert {r: at for (i, r), at in started(program).items() if i == 3} == {1: 3, 0: 8, 2: 13}


def test_streams_of_one_rank_tie_in_program_order():
    program = of(run("comm", 3, resource=ONE), run("compute", 3, resource=ONE), num_ranks=1)
    assert started(program) == {(0, 0): 0, (1, 0): 3}


ONE = Resource("link", np.array([0]))


def test_first_come_first_served_before_rank():
    program = of(run("compute", 2, 1), run("compute", 5, 5, resource=Resource("link", np.array([0, 0]))))
    assert started(program)[1, 1] == 1
    assert started(program)[1, 0] == 6


def test_holder_of_no_duration_releases_before_the_next_grant():
    """Rank 0 holds the link for no time and is back in the queue at once, ahead of rank 1."""
    program = of(
        run("comm", 0, 4, resource=Resource("link", np.array([0, 0]))),
        run("comm", 4, 0, resource=Resource("link", np.array([0, 0]))),
    )
    assert started(program) == {(0, 0): 0, (1, 0): 0, (0, 1): 4, (1, 1): 8}


def test_units_of_a_resource_and_ranks_without_one_do_not_disturb_each_other():
    program = of(run("comm", 4, 4, 4, resource=Resource("link", np.array([0, 1, -1]))), num_ranks=3)
    assert set(started(program).values()) == {0}


def test_settled_comes_after_everything_of_its_instant():
    env, order = Environment(), []
    Settled(env).callbacks.append(lambda _: order.append("settled"))
    for name in ("first", "second"):
        env.timeout(0).callbacks.append(lambda _, name=name: order.append(name))
    env.run()
    assert order == ["first", "second", "settled"]


def test_arbiter_serves_a_process_of_any_room():
    env, log = Environment(), []
    arbiter = Arbiter(env)

    def user(rank, arrival):
        yield env.timeout(arrival)
        yield arbiter.request("ssd", rank, 0)
        log.append((env.now, rank))
        yield env.timeout(10)
        arbiter.release("ssd")

    for rank, arrival in ((2, 3), (1, 3), (0, 5)):
        env.process(user(rank, arrival))
    env.run()
    assert log == [(3, 1), (13, 2), (23, 0)]


def test_examples_of_the_docstrings():
    assert doctest.testmod(groups).failed == 0
    assert doctest.testmod(groups).attempted > 0


def test_vector_is_far_ahead_of_events_at_64_ranks():
    """A ratio, so that it holds on any machine: about 250 where it was written."""
    world = np.zeros(64, dtype=np.int64)
    layer = (
        run("compute", *range(64)),
        Wait("comm", "compute"),
        Meet("comm", world, ()),
        Wait("compute", "comm"),
    )
    program = of(*layer * 20, num_ranks=64)
    compiled, durations = vector.compile(program), durations_ps(program)

    def least_s(work):
        taken = []
        for _ in range(3):
            start = time.process_time()
            work()
            taken.append(time.process_time() - start)
        return min(taken)

    event_s = least_s(lambda: simulate(program, durations))
    vector_s = least_s(lambda: [vector.run(compiled, durations) for _ in range(10)]) / 10
    assert event_s > 50 * vector_s
