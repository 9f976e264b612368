"""Laws of the engine over random programs: interpreters and list scheduler agree to the picosecond."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import durations_of, relabelled, stream_programs, work_ps

from moesim.engine import (
    Durations,
    Receive,
    Run,
    Wait,
    busy_ps,
    durations_ps,
    overlapping,
    reference,
    spans_of,
    vector,
)
from moesim.engine.critical_path import critical_path, path_parts
from moesim.engine.events import simulate
from moesim.engine.spans import ABSENT

MANY = settings(max_examples=150)
FEW = settings(max_examples=40)


@st.composite
def programs_and_durations(draw, *, num_samples=1, resources=False):
    program = draw(stream_programs(resources=resources))
    return program, draw(durations_of(program, num_samples=num_samples))


def recorded_reference(program, durations, sample=0):
    """Starts and ends from the list scheduler as arrays ``(instruction, rank)``."""
    shape = (len(program.instructions), program.num_ranks)
    starts, ends = np.full(shape, ABSENT), np.full(shape, ABSENT)
    lasting = durations.dense(program.num_ranks)[:, sample].tolist()
    for task, (start, end) in reference.schedule(program, lasting).items():
        starts[task], ends[task] = start, end
    return starts, ends


def vector_run(program, durations, **named):
    return vector.run(vector.compile(program), durations, **named)


@MANY
@given(programs_and_durations(num_samples=3))
def test_interpreters_and_list_scheduler_agree(case):
    program, durations = case
    ours = vector_run(program, durations, record=True)
    for sample in range(3):
        event = simulate(program, durations, sample=sample)
        starts, ends = recorded_reference(program, durations, sample)
        for recorded, column in ((ours.recorded, sample), (event.recorded, 0)):
            np.testing.assert_array_equal(recorded.starts_ps[:, column], starts)
            np.testing.assert_array_equal(recorded.ends_ps[:, column], ends)
        np.testing.assert_array_equal(ours.clocks_ps[:, sample], event.clocks_ps)
        assert ours.makespan_ps[sample] == event.makespan_ps == max(ends.max(initial=0), 0)


@FEW
@given(programs_and_durations(num_samples=2))
def test_recording_changes_no_clock(case):
    program, durations = case
    plain, recording = vector_run(program, durations), vector_run(program, durations, record=True)
    np.testing.assert_array_equal(plain.clocks_ps, recording.clocks_ps)
    assert plain.recorded is None


@MANY
@given(programs_and_durations(resources=True))
def test_events_agree_with_list_scheduler_on_shared_resources(case):
    program, durations = case
    recorded = simulate(program, durations).recorded
    starts, ends = recorded_reference(program, durations)
    np.testing.assert_array_equal(recorded.starts_ps[:, 0], starts)
    np.testing.assert_array_equal(recorded.ends_ps[:, 0], ends)


@FEW
@given(programs_and_durations(resources=True))
def test_vector_refuses_shared_resources(case):
    program, _ = case
    if any(isinstance(i, Run) and i.resource for i in program.instructions):
        with pytest.raises(ValueError, match="accepts no shared resources"):
            vector.compile(program)
    else:
        vector.compile(program)


@FEW
@given(programs_and_durations(resources=True))
def test_makespan_lies_between_bounds_and_spans_are_apart(case):
    program, durations = case
    run = simulate(program, durations)
    spans, work = spans_of(program, run.recorded), work_ps(program, durations)
    busy = busy_ps(spans, len(program.streams), program.num_ranks)
    assert overlapping(spans) == []
    assert busy.sum() == work.sum()
    assert busy.max(initial=0) <= run.makespan_ps <= work.sum()
    path = critical_path(program, run.recorded)
    assert sum(step.end_ps - step.start_ps for step in path) == run.makespan_ps
    assert [s.start_ps for s in path] == [0, *(s.end_ps for s in path)][: len(path)]
    for step in path:
        assert step.end_ps - step.start_ps == work[step.instruction, step.rank]


@FEW
@given(stream_programs(), st.integers(0, 3))
def test_parts_on_the_critical_path_add_up_to_the_makespan(program, sample):
    errors = {"work": np.linspace(-1.0, 1.0, 4)}
    ran = vector_run(program, durations_ps(program, errors), record=True)
    path = critical_path(program, ran.recorded, sample)
    parts = path_parts(program, path, errors, sample)
    assert sum(lasting for *_, lasting in parts) == ran.makespan_ps[sample]


@FEW
@given(programs_and_durations(resources=True))
def test_units_of_a_resource_serve_one_at_a_time(case):
    program, durations = case
    recorded = simulate(program, durations).recorded
    held = {}
    for index, what in enumerate(program.instructions):
        for rank in np.flatnonzero(recorded.ends_ps[index, 0] != ABSENT):
            if isinstance(what, Run) and what.resource and what.resource.index[rank] >= 0:
                interval = (recorded.starts_ps[index, 0, rank], recorded.ends_ps[index, 0, rank])
                held.setdefault((what.resource.name, what.resource.index[rank]), []).append(interval)
    for intervals in held.values():
        intervals.sort()
        assert all(b[0] >= a[1] for a, b in zip(intervals, intervals[1:], strict=False))


@FEW
@given(programs_and_durations(resources=True), st.integers(0, 1000))
def test_scaling_durations_scales_every_clock(case, factor):
    program, durations = case
    once, scaled = simulate(program, durations), simulate(program, durations.scaled(factor))
    if factor:  # all of no duration is another set of ties
        np.testing.assert_array_equal(once.clocks_ps * factor, scaled.clocks_ps)
    else:
        assert scaled.makespan_ps == 0


@FEW
@given(programs_and_durations(), st.data())
def test_longer_work_is_never_through_earlier(case, data):
    program, durations = case
    more = data.draw(durations_of(program))
    longer = Durations.from_rows([a + b for a, b in zip(durations.rows, more.rows, strict=True)])
    assert (vector_run(program, durations).clocks_ps <= vector_run(program, longer).clocks_ps).all()


@FEW
@given(programs_and_durations(), st.data())
def test_names_of_ranks_do_not_matter(case, data):
    program, durations = case
    new_rank = np.array(data.draw(st.permutations(range(program.num_ranks))))
    old_rank = np.argsort(new_rank)
    rows = [row if row.shape[1] == 1 else row[:, old_rank] for row in durations.rows]
    renamed = vector_run(relabelled(program, new_rank), Durations.from_rows(rows))
    np.testing.assert_array_equal(vector_run(program, durations).clocks_ps[:, :, old_rank], renamed.clocks_ps)


@FEW
@given(stream_programs(resources=True), st.booleans())
def test_fusing_runs_changes_no_clock(program, across_layers):
    fused = program.fused(across_layers=across_layers).check()
    before, after = simulate(program, durations_ps(program)), simulate(fused, durations_ps(fused))
    np.testing.assert_array_equal(before.clocks_ps, after.clocks_ps)
    assert len(fused.instructions) <= len(program.instructions)
    again = fused.fused(across_layers=across_layers)
    assert len(again.instructions) == len(fused.instructions)


@FEW
@given(programs_and_durations())
def test_waiting_twice_is_waiting_once(case):
    program, durations = case
    twice, rows = [], []
    for what, row in zip(program.instructions, durations.rows, strict=True):
        count = 2 if isinstance(what, Wait) else 1
        twice += [what] * count
        rows += [row] * count
    doubled = replace(program, instructions=tuple(twice))
    np.testing.assert_array_equal(
        vector_run(program, durations).clocks_ps,
        vector_run(doubled, Durations.from_rows(rows)).clocks_ps,
    )


@FEW
@given(programs_and_durations())
def test_work_starts_at_a_cause_or_at_zero(case):
    program, durations = case
    starts, ends = recorded_reference(program, durations)
    for (index, rank), needs in reference.dependencies(program).items():
        assert starts[index, rank] == max((ends[n] for n in needs), default=0)
        if isinstance(program.instructions[index], Receive | Wait):
            assert starts[index, rank] == ends[index, rank]
