"""Background streams: they last as long as the program, and what they take of a link is told."""

import numpy as np
import pytest

from moesim.engine import Demand, Meet, Part, Program, Run, Wait, durations_ps, events, vector
from moesim.evidence import Estimate
from moesim.units import PS_PER_S

LINK = np.array([100.0, 100.0])
GROUP = np.zeros(2, dtype=np.int64)
FIRST = np.array([True, False])


def part(seconds):
    return (Part("work", "copy", Estimate(seconds, "copy", "assumed", 0.0)),)


def on_link(link, rate):
    return Demand(LINK, np.array([[link], [-1]]), np.array([[rate], [0.0]]))


def beside(*background, streams=("comm",)):
    own = Meet("comm", GROUP, part(1.0), demand=on_link(0, 80.0))
    names = tuple(dict.fromkeys(run.stream for run in background))
    return Program(2, (*streams, *names), (own, *background), names)


def simulated(program):
    return events.simulate(program, durations_ps(program))


@pytest.mark.parametrize(
    ("rate", "takes"),
    [(20.0, 1.0), (40.0, 80 / 60), (100.0, 1.6)],  # room for both; what the other leaves; half of the link
)
def test_an_endless_transfer_leaves_a_fair_share(rate, takes):
    program = beside(Run("other", part(0.1), ranks=FIRST, demand=on_link(0, rate)))
    run = simulated(program)
    assert run.makespan_ps / PS_PER_S == pytest.approx(takes, rel=1e-6)
    (use,) = run.link_use
    assert use.carried[0] == pytest.approx(80.0, rel=1e-6)
    assert use.carried_beside[0] == pytest.approx(min(rate, 100 - 80 / takes) * takes, rel=1e-6)
    assert use.lost_s[0] == pytest.approx(takes - 1.0, rel=1e-6, abs=1e-6)
    assert use.lost_s[1] == 0


def test_pauses_leave_the_link_to_the_program():
    burst = Run("other", part(0.1), ranks=FIRST, demand=on_link(0, 100.0))
    pause = Run("other", part(0.3), ranks=FIRST)
    run = simulated(beside(burst, pause))
    # a burst of 0.1 s takes 0.2 s at half the link, and leaves the program 50 of its 80
    done = now = 0.0
    while done < 1.0:
        for lasts, speed in ((0.2, 50 / 80), (0.3, 1.0)):
            step = min(lasts, (1.0 - done) / speed)
            done, now = done + step * speed, now + step
    assert run.makespan_ps / PS_PER_S == pytest.approx(now, rel=1e-6)


@pytest.mark.parametrize(("seconds", "demand"), [(0.1, on_link(1, 100.0)), (0.0, None)])
def test_another_link_costs_nothing_and_a_background_of_no_length_ends(seconds, demand):
    program = beside(Run("other", part(seconds), ranks=FIRST, demand=demand))
    assert simulated(program).makespan_ps == PS_PER_S


def test_only_runs_are_background_nobody_waits_for_it_and_vector_refuses():
    other = Run("other", part(0.1), ranks=FIRST)
    with pytest.raises(ValueError, match="use the event interpreter"):
        vector.compile(beside(other))
    meets = Program(2, ("comm", "other"), (Meet("other", GROUP, part(1.0)),), ("other",))
    waits = Program(2, ("comm", "other"), (other, Wait("comm", on="other")), ("other",))
    unknown = Program(2, ("comm",), (), ("other",))
    for program, text in ((meets, "is background"), (waits, "has no end"), (unknown, "unknown stream")):
        with pytest.raises(ValueError, match=text):
            program.check()
