"""Schedules: what every order must hold, and how many microbatches it keeps alive."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import CHUNKS, geometry_of

from moesim.errors import InputError
from moesim.training.orders import deeds, in_flight, sequence
from moesim.training.schedules.base import Geometry, Orders, Pass, Task, check, schedules


def test_every_registered_schedule_is_tested():
    assert schedules.names() == sorted(CHUNKS)


@pytest.mark.parametrize("name", CHUNKS)
@given(st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_every_pass_once_and_after_what_it_needs(name, half_stages, rounds):
    schedule, geometry = schedules.build(name), geometry_of(name, 2 * half_stages, rounds)
    found = sequence(schedule, geometry)
    done = set()
    last = found.num_parts - 1
    for placed in found.placed:
        assert placed.deeds == deeds(placed.task, found.parts[placed.stage].tolist())
        for kind, microbatch, part in placed.deeds:
            if kind == "F":
                assert part == 0 or ("F", microbatch, part - 1) in done
            elif kind == "B":
                assert ("F", microbatch, part) in done
                assert part == last or ("B", microbatch, part + 1) in done
            elif placed.task.kind is Pass.WEIGHT_GRADIENT:
                assert ("B", microbatch, part) in done
            assert (kind, microbatch, part) not in done
            done.add((kind, microbatch, part))
    assert len(done) == 3 * geometry.num_microbatches * found.num_parts


@pytest.mark.parametrize("name", CHUNKS)
def test_flags_tell_which_passes_occur(name):
    schedule = schedules.build(name)
    kinds = sequence(schedule, geometry_of(name, 4, 2)).kinds
    assert schedule.splits_backward == (Pass.WEIGHT_GRADIENT in kinds)
    assert schedule.pairs == (Pass.PAIR in kinds)


@given(st.integers(1, 8), st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_in_flight_of_one_chunk_schedules(num_stages, num_microbatches):
    geometry = Geometry(num_stages, num_microbatches)
    stage = np.arange(num_stages)
    alive = {name: in_flight(schedules.build(name), geometry)[:, 0] for name in ("gpipe", "1f1b", "zb1p")}
    assert (alive["gpipe"] == num_microbatches).all()
    assert (alive["1f1b"] == np.minimum(num_stages - stage, num_microbatches)).all()
    assert (alive["zb1p"] == min(num_stages, num_microbatches)).all()
    early = in_flight(schedules.build("zb1p"), geometry, until=Pass.INPUT_GRADIENT)[:, 0]
    assert (early == alive["1f1b"]).all()


@given(st.integers(1, 6), st.integers(2, 4), st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_in_flight_of_interleaved(num_stages, num_chunks, rounds):
    geometry = Geometry(num_stages, num_stages * rounds, num_chunks)
    ahead = 2 * (num_stages - 1 - np.arange(num_stages)) + (num_chunks - 1) * num_stages
    most = num_chunks * geometry.num_microbatches
    alive = in_flight(schedules.build("interleaved"), geometry)
    assert (alive.sum(axis=1) == np.minimum(ahead + 1, most)).all()
    pairs = in_flight(schedules.build("interleaved_pairs"), geometry)
    assert (pairs.sum(axis=1) == np.minimum(ahead + 2, most)).all()


@given(st.integers(1, 6), st.integers(1, 2))
@settings(max_examples=20, deadline=None)
def test_in_flight_of_two_directions(half_stages, rounds):
    stages = 2 * half_stages
    geometry = Geometry(stages, 2 * stages * rounds, 2)
    assert (in_flight(schedules.build("dualpipe"), geometry).sum(axis=1) == stages + 1).all()
    assert (in_flight(schedules.build("dualpipe_v"), geometry).sum(axis=1) == 2 * stages + 1).all()
    assert (in_flight(schedules.build("zb_v"), geometry).sum(axis=1) == 2 * stages).all()


def test_in_flight_is_taken_where_the_bytes_are_most():
    schedule, geometry = schedules.build("interleaved"), Geometry(4, 16, 2)
    heavy = np.array([[0.0, 1.0]] * 4)
    assert (in_flight(schedule, geometry, weights=heavy)[:, 1] >= in_flight(schedule, geometry)[:, 1]).all()
    assert (
        in_flight(schedule, geometry, weights=1 - heavy)[:, 0] >= in_flight(schedule, geometry)[:, 0]
    ).all()


@pytest.mark.parametrize(
    ("name", "geometry", "accepted"),
    [
        ("1f1b", Geometry(4, 8, 2), "accepted: 1"),
        ("interleaved", Geometry(4, 8, 1), "2 or more"),
        ("interleaved", Geometry(4, 10, 2), "a multiple of 4"),
        ("dualpipe", Geometry(5, 20, 2), "an even number"),
        ("dualpipe", Geometry(8, 14, 2), "at least 16"),
        ("dualpipe", Geometry(2, 5, 2), "an even number of at least 4"),
        ("dualpipe_v", Geometry(4, 7, 2), "at least 8"),
        ("zb_v", Geometry(4, 7, 2), "at least 8"),
        ("gpipe", Geometry(0, 1), "at least 1"),
    ],
)
def test_a_pipeline_that_a_schedule_cannot_run_is_an_error(name, geometry, accepted):
    with pytest.raises(InputError, match=accepted):
        check(schedules.build(name), geometry)


def test_group_size_below_the_stages_is_an_error():
    with pytest.raises(InputError, match="group_size: got 2; accepted: at least 4"):
        check(schedules.build("interleaved", {"group_size": 2}), Geometry(4, 8, 2))


@dataclass(frozen=True)
class Given:
    """A schedule with the orders it was given."""

    given: Orders

    splits_backward: ClassVar[bool] = True
    pairs: ClassVar[bool] = False

    def problems(self, geometry):
        return []

    def part_of(self, stage, chunk, geometry):
        return stage

    def orders(self, geometry):
        return self.given


def tasks(text: str) -> tuple[Task, ...]:
    return tuple(Task(Pass(word[:-1]), int(word[-1])) for word in text.split())


def test_a_deadlock_names_who_waits_for_what():
    wrong = Given((tasks("F0 BW0 F1 BW1"), tasks("F1 F0 BW0 BW1")))
    with pytest.raises(InputError) as error:
        sequence(wrong, Geometry(2, 2))
    text = str(error.value)
    assert "stage 0 stands before BW of microbatch 0, needs B of microbatch 0 through part 1" in text
    assert "stage 1 stands before F of microbatch 1, needs F of microbatch 1 through part 0" in text


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ("F0 BW0", "F of microbatch 1 through part 1 is missing"),
        ("F0 F1 BW0 BW1 W1", "W of microbatch 1 through part 1 is done 2 times"),
        ("F0 F1 BW0 BW1 F2", "F of microbatch 2 through part 1 does not belong there"),
    ],
)
def test_orders_that_leave_out_or_repeat_a_pass_are_an_error(second, told):
    with pytest.raises(InputError, match=told):
        sequence(Given((tasks("F0 F1 BW0 BW1"), tasks(second))), Geometry(2, 2))
