"""The pipeline program: closed forms of bubbles, bounds, and what surrounds the passes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import CHUNKS, geometry_of

from moesim.engine import Durations
from moesim.engine.events import simulate
from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.training import pipeline
from moesim.training.orders import sequence
from moesim.training.pass_times import checked, passes_ps, rows_ps
from moesim.training.pipeline import PassTimes, record_pipeline, simulate_pipeline
from moesim.training.pipeline_program import build
from moesim.training.schedules.base import Geometry, Pass, schedules
from moesim.units import PS_PER_S

KINDS = (Pass.FORWARD, Pass.INPUT_GRADIENT, Pass.WEIGHT_GRADIENT, Pass.BACKWARD, Pass.PAIR)
WHOLE_S = st.integers(1, 9)


def equal_times(forward, gradient, weight, pair=None, **around):
    """Equal passes everywhere, in whole seconds, so that sums are exact."""
    backward = gradient + weight
    values = (forward, gradient, weight, backward, forward + backward if pair is None else pair)
    return PassTimes(
        {kind: np.array(float(value)) for kind, value in zip(KINDS, values, strict=True)}, **around
    )


def random_times(geometry, *, num_samples=1, num_replicas=1, seed=0, **around):
    rng = rng_for(seed, "test/pipeline")
    shape = (num_samples, num_replicas, geometry.num_stages, geometry.num_chunks, geometry.num_microbatches)
    return PassTimes({kind: rng.integers(1, 1000, shape) / 1000 for kind in KINDS}, **around)


def idle_s(name, geometry, times, stage=0):
    run = simulate_pipeline(schedules.build(name), geometry, times)
    return run.makespan_s[0] - run.busy_s[0, 0, stage]


@given(st.integers(1, 8), st.integers(0, 12), WHOLE_S, WHOLE_S, WHOLE_S)
@settings(max_examples=30, deadline=None)
def test_bubble_of_gpipe_and_1f1b(num_stages, more, forward, gradient, weight):
    geometry = Geometry(num_stages, num_stages + more)
    expected = (num_stages - 1) * (forward + gradient + weight)
    for name in ("gpipe", "1f1b"):
        assert idle_s(name, geometry, equal_times(forward, gradient, weight)) == expected


@given(st.integers(1, 6), st.integers(2, 4), st.integers(1, 3), WHOLE_S, WHOLE_S)
@settings(max_examples=20, deadline=None)
def test_bubble_of_interleaved_shrinks_with_its_chunks(num_stages, num_chunks, rounds, forward, backward):
    geometry = Geometry(num_stages, num_stages * rounds, num_chunks)
    stage_s = num_chunks * (forward + backward)
    expected = (num_stages - 1) * stage_s / num_chunks
    assert idle_s("interleaved", geometry, equal_times(forward, backward - 0.5, 0.5)) == expected


@given(st.integers(1, 8), st.integers(0, 12), WHOLE_S, WHOLE_S, WHOLE_S)
@settings(max_examples=30, deadline=None)
def test_bubble_of_zb1p(num_stages, more, forward, gradient, weight):
    """Exact while a weight gradient is no longer than the others, and never less."""
    geometry = Geometry(num_stages, 2 * num_stages + more)
    backward = gradient + weight
    expected = (num_stages - 1) * (forward + backward - 2 * weight)
    idle = idle_s("zb1p", geometry, equal_times(forward, gradient, weight))
    assert idle == expected if weight <= min(forward, gradient) else idle >= expected


@given(st.integers(1, 5), st.integers(0, 3), WHOLE_S, WHOLE_S, st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_bubble_of_dualpipe(half_stages, more, forward, weight, hidden):
    """Where the directions meet, for F as long as B alone and W no longer; other stages pair more or less."""
    weight = min(weight, forward)
    geometry = Geometry(2 * half_stages, 4 * half_stages + 2 * more, 2)
    backward = forward + weight
    pair = forward + backward - round(hidden * forward)
    expected = (half_stages - 1) * (pair + backward - 3 * weight)
    times = equal_times(forward, forward, weight, pair)
    assert idle_s("dualpipe", geometry, times, half_stages - 1) == expected
    assert idle_s("dualpipe", geometry, times, half_stages) == expected
    folded = Geometry(half_stages, geometry.num_microbatches, 2)
    assert idle_s("dualpipe_v", folded, times, half_stages - 1) == expected


@given(st.integers(1, 5), st.integers(0, 3), WHOLE_S)
@settings(max_examples=15, deadline=None)
def test_zb_v_with_equal_passes_idles_only_before_its_first(num_stages, more, seconds):
    geometry = Geometry(num_stages, 2 * num_stages + more, 2)
    times = equal_times(seconds, seconds, seconds)
    assert (
        idle_s("zb_v", geometry, times) == (num_stages - 1) * seconds
    )  # until the first microbatch is there
    assert idle_s("dualpipe_v", geometry, times) == (num_stages - 1) * 2 * seconds


@pytest.mark.parametrize("name", CHUNKS)
@given(st.integers(1, 3), st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_bounds_of_any_durations(name, half_stages, seed):
    schedule, geometry = schedules.build(name), geometry_of(name, 2 * half_stages, 1)
    times = random_times(geometry, seed=seed, send_s=0.05)
    run = simulate_pipeline(schedule, geometry, times)
    assert run.makespan_s[0] >= run.busy_s.max()
    assert run.makespan_s[0] == pytest.approx(run.passes_s[0] + sum(run.exposed_s.values())[0])
    spans = record_pipeline(schedule, geometry, times).view["spans"]
    assert max(span[-1] for span in spans) == run.makespan_s[0]
    parts = sequence(schedule, geometry).parts
    own = {}
    for stage, kind, microbatch, chunk, _, _, start, end in spans:
        if kind in ("F", "B", "BW"):
            own.setdefault(microbatch, []).append((kind != "F", int(parts[stage, chunk]), start, end))
    for passes in own.values():  # a microbatch's own way, as far as no pair hides its parts
        for (_, _, _, end), (_, _, start, _) in zip(
            up_and_down(passes), up_and_down(passes)[1:], strict=False
        ):
            assert start >= end


def up_and_down(passes):
    """Forwards by ascending part, backwards by descending."""
    return sorted(passes, key=lambda one: (one[0], -one[1] if one[0] else one[1]))


@pytest.mark.parametrize("name", CHUNKS)
def test_messages_delay_every_hop_of_a_lone_microbatch(name):
    """The critical path of one microbatch bounds the step from below, with its messages."""
    schedule, geometry = schedules.build(name), geometry_of(name, 4, 1)
    run = simulate_pipeline(schedule, geometry, equal_times(2, 1, 1, send_s=3.0))
    placed = sequence(schedule, geometry)
    hops = sum(
        placed.stage_of["F", 0, part] != placed.stage_of["F", 0, part + 1]
        for part in range(placed.num_parts - 1)
    )
    assert run.makespan_s[0] >= placed.num_parts * 3 + 2 * hops * 3


@pytest.mark.parametrize("name", CHUNKS)
def test_both_programs_and_both_interpreters_agree(name):
    schedule, geometry = schedules.build(name), geometry_of(name, 2 if name == "interleaved" else 4, 1)
    shape = (geometry.num_stages, geometry.num_chunks)
    rng = rng_for(1, "test/pipeline")
    times = random_times(
        geometry,
        num_replicas=2,
        send_s=rng.uniform(0, 1, (2, geometry.num_stages)),
        gather_s=rng.uniform(0, 2, shape),
        reduce_s=rng.uniform(0, 9, shape),
        optimizer_s=rng.uniform(0, 1, geometry.num_stages),
    )
    run = simulate_pipeline(schedule, geometry, times)
    found = sequence(schedule, geometry)
    seconds = checked(times, found.kinds, geometry)
    recorded = record_pipeline(schedule, geometry, times)
    for one_by_one in (False, True):
        piped = build(found, times.options(2), one_by_one=one_by_one)
        rows = rows_ps(piped, seconds, passes_ps(piped, geometry, seconds))
        events = simulate(piped.program, Durations.from_rows(rows))
        assert events.makespan_ps == round(run.makespan_s[0] * PS_PER_S)
        if one_by_one:
            assert (events.recorded.starts_ps == recorded.recorded.starts_ps).all()


def test_samples_and_replicas_are_independent_until_gradients_meet():
    schedule, geometry = schedules.build("1f1b"), Geometry(4, 8)
    many = pipeline.SAMPLES_AT_ONCE + 3
    both = random_times(geometry, num_samples=many, num_replicas=2, send_s=0.1, reduce_s=0.5)
    run = simulate_pipeline(schedule, geometry, both)
    for sample in (0, 1, many - 4, many - 1):
        alone = []
        for replica in range(2):
            seconds = {kind: values[sample, replica] for kind, values in both.seconds.items()}
            own = PassTimes(seconds, send_s=0.1, reduce_s=0.5)
            alone.append(simulate_pipeline(schedule, geometry, own))
        assert run.makespan_s[sample] == max(one.makespan_s[0] for one in alone)
        assert run.passes_s[sample] == max(one.passes_s[0] for one in alone)


def test_stages_that_share_a_part_reduce_together():
    """In DualPipe the gradients of a part meet when both of its holders have them."""
    schedule, geometry = schedules.build("dualpipe"), Geometry(4, 8, 2)
    times = random_times(geometry, reduce_s=np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [0.0, 0.0]]))
    found = record_pipeline(schedule, geometry, times)
    meets = {
        tuple(found.recorded.starts_ps[i, 0, 1:3])
        for i, one in enumerate(found.program.instructions)
        if one.stream == "reduce"
        and (found.recorded.ends_ps[i, 0, 1:3] >= 0).all()
        and type(one).__name__ == "Meet"
    }
    assert len(meets) == 2
    assert all(first == second for first, second in meets)


def test_hidden_communication_costs_nothing_and_exposed_all_of_it():
    schedule, geometry = schedules.build("1f1b"), Geometry(4, 8)
    base = simulate_pipeline(schedule, geometry, equal_times(2, 2, 2)).makespan_s[0]
    hidden = simulate_pipeline(
        schedule, geometry, equal_times(2, 2, 2, gather_s=np.array([[0.0], [1.0], [2.0], [6.0]]))
    )
    assert hidden.makespan_s[0] == base
    shown = simulate_pipeline(
        schedule, geometry, equal_times(2, 2, 2, gather_s=1.5, reduce_s=2.5, optimizer_s=1.0)
    )
    assert {name: seconds[0] for name, seconds in shown.exposed_s.items()} == {
        "send": 0.0,
        "gather": 1.5,
        "reduce": 2.5,
        "optimizer": 1.0,
    }


def test_reduction_beside_the_passes_is_no_later_than_after_them():
    schedule, geometry = schedules.build("interleaved"), Geometry(4, 8, 2)
    reduce_s = np.full((4, 2), 3.0)
    beside = simulate_pipeline(schedule, geometry, equal_times(2, 2, 2, reduce_s=reduce_s))
    after = simulate_pipeline(
        schedule, geometry, equal_times(2, 2, 2, reduce_s=reduce_s, overlap_reduce=False)
    )
    assert beside.exposed_s["reduce"][0] == 3.0
    assert after.exposed_s["reduce"][0] == 6.0
    first = simulate_pipeline(
        schedule, geometry, equal_times(2, 2, 2, gather_s=reduce_s, overlap_gather=False)
    )
    assert first.exposed_s["gather"][0] == 6.0


def test_without_a_global_norm_a_stage_updates_when_it_is_done():
    schedule, geometry = schedules.build("gpipe"), Geometry(2, 2)
    slow_last = np.array([0.0, 4.0])
    alone = equal_times(1, 1, 1, optimizer_s=slow_last, global_norm=False)
    assert simulate_pipeline(schedule, geometry, alone).exposed_s["optimizer"][0] == 2.0
    together = equal_times(1, 1, 1, optimizer_s=slow_last)
    assert simulate_pipeline(schedule, geometry, together).exposed_s["optimizer"][0] == 4.0


def test_a_pair_may_go_by_the_chunk_of_its_backward():
    schedule, geometry = schedules.build("dualpipe"), Geometry(4, 8, 2)
    times = equal_times(1, 1, 1, 3)
    wide = np.full((1, 1, 1, 2, 2, 1), 3.0)
    same = simulate_pipeline(schedule, geometry, PassTimes({**times.seconds, Pass.PAIR: wide}))
    assert same.makespan_s[0] == simulate_pipeline(schedule, geometry, times).makespan_s[0]
    wide[..., 0, 1, :] = 5.0
    more = simulate_pipeline(schedule, geometry, PassTimes({**times.seconds, Pass.PAIR: wide}))
    assert more.makespan_s[0] > same.makespan_s[0]


def test_all_that_is_wrong_with_times_is_told_at_once():
    times = PassTimes(
        {Pass.FORWARD: np.ones((3, 1, 5, 1, 1)), Pass.INPUT_GRADIENT: np.array(-1.0)},
        send_s=np.ones((2, 1, 4)),
    )
    with pytest.raises(InputError) as error:
        simulate_pipeline(schedules.build("zb1p"), Geometry(4, 8), times)
    text = str(error.value)
    for told in (
        "seconds.W: the schedule has such passes",
        "seconds.F: got shape",
        "-1.0",
        "samples: got [2, 3]",
    ):
        assert told in text
