"""Spans, utilisation and the critical path on programs worked out by hand."""

import numpy as np
import pytest
from strategies import part_of_ps

from moesim.engine import (
    Meet,
    Program,
    Receive,
    Resource,
    Run,
    Send,
    Spans,
    Wait,
    busy_ps,
    durations_ps,
    overlapping,
    spans_of,
    vector,
)
from moesim.engine.critical_path import PathStep, critical_path
from moesim.engine.events import simulate


def run(stream, *duration_ps, **named):
    return Run(stream, (part_of_ps(duration_ps),), **named)


STEP = Program(
    2,
    ("compute", "comm"),
    (
        run("compute", 5, 9),
        Wait("comm", "compute"),
        Meet("comm", np.array([0, 0]), (part_of_ps([3, 4]),)),
        run("compute", 6, 1),
        Wait("compute", "comm"),
        run("compute", 2, 2),
    ),
)


def recorded(program):
    return simulate(program, durations_ps(program)).recorded


def spans(rows):
    start, end, rank, stream = np.array(rows).T
    columns = (column.astype(np.int32) for column in (rank, stream, np.arange(len(rows))))
    return Spans(start, end, *columns)


def test_spans_hold_work_and_no_waiting():
    table = spans_of(STEP, recorded(STEP))
    rows = zip(table.start_ps, table.end_ps, table.rank, table.stream, table.instruction, strict=True)
    assert [tuple(int(v) for v in row) for row in rows] == [
        (0, 5, 0, 0, 0),
        (0, 9, 1, 0, 0),
        (9, 12, 0, 1, 2),
        (9, 13, 1, 1, 2),
        (5, 11, 0, 0, 3),
        (9, 10, 1, 0, 3),
        (12, 14, 0, 0, 5),
        (13, 15, 1, 0, 5),
    ]
    assert len(table) == 8
    assert busy_ps(table, 2, 2).tolist() == [[13, 12], [3, 4]]
    assert table.end_s[3] == 13 / 10**12
    assert table.start_s[4] == 5 / 10**12


def test_spans_of_a_sample_of_a_vector_run():
    durations = durations_ps(STEP, {"work": np.zeros(3)})
    ran = vector.run(vector.compile(STEP), durations, record=True)
    for sample in range(3):
        np.testing.assert_array_equal(
            spans_of(STEP, ran.recorded, sample).end_ps, spans_of(STEP, recorded(STEP)).end_ps
        )


def test_overlaps_are_found_on_one_stream_of_one_rank_only():
    assert overlapping(spans([(0, 5, 0, 0), (5, 9, 0, 0), (3, 4, 1, 0), (3, 4, 0, 1)])) == []
    assert overlapping(spans([(5, 9, 0, 0), (0, 6, 0, 0)])) == [(1, 0)]
    assert overlapping(spans([(0, 9, 0, 0), (4, 4, 0, 0), (9, 9, 0, 0)])) == [(0, 1)]
    assert overlapping(spans([(0, 0, 0, 0), (0, 3, 0, 0), (3, 3, 0, 0)])) == []


def test_critical_path_crosses_streams_and_ranks():
    assert critical_path(STEP, recorded(STEP)) == [
        PathStep(0, 1, 0, 9),
        PathStep(2, 1, 9, 13),
        PathStep(5, 1, 13, 15),
    ]


def test_critical_path_leads_to_the_last_member_of_a_group():
    program = Program(3, ("comm",), (run("comm", 1, 7, 2), Meet("comm", np.zeros(3, int), (part_of_ps(4),))))
    assert critical_path(program, recorded(program)) == [PathStep(0, 1, 0, 7), PathStep(1, 0, 7, 11)]


def test_critical_path_follows_a_message_back():
    program = Program(
        2,
        ("comm",),
        (
            run("comm", 5, 1),
            Send("comm", np.array([1, -1]), (part_of_ps(3),)),
            Receive("comm", np.array([-1, 0])),
            run("comm", 0, 4),
        ),
    )
    assert critical_path(program, recorded(program)) == [
        PathStep(0, 0, 0, 5),
        PathStep(1, 0, 5, 8),
        PathStep(3, 1, 8, 12),
    ]


def test_critical_path_goes_through_the_holder_of_a_resource():
    link = Resource("link", np.array([0, 0]))
    program = Program(2, ("copy",), (run("copy", 1, 2), run("copy", 10, 1, resource=link)))
    assert critical_path(program, recorded(program)) == [
        PathStep(0, 0, 0, 1),
        PathStep(1, 0, 1, 11),
        PathStep(1, 1, 11, 12),
    ]


def test_critical_path_passes_holders_of_no_duration():
    """Ranks 0 and 1 get the link at 5 and hold it for no time: the path leads to rank 2, who held it."""
    program = Program(
        3,
        ("copy",),
        (
            run("copy", 1, 1, 0),
            run("copy", 0, 0, 5, resource=Resource("link", np.array([0, 0, 0]))),
            run("copy", 1, 3, 0),
        ),
    )
    assert critical_path(program, recorded(program)) == [
        PathStep(1, 2, 0, 5),
        PathStep(1, 1, 5, 5),
        PathStep(2, 1, 5, 8),
    ]


def test_no_path_without_time():
    program = Program(2, ("copy",), (run("copy", 0, 0),))
    assert critical_path(program, recorded(program)) == []
    empty = Program(2, ("copy",), ())
    assert critical_path(empty, recorded(empty)) == []


def test_path_of_another_program_is_refused():
    other = Program(
        2, ("compute", "comm"), (*STEP.instructions[:4], STEP.instructions[5], STEP.instructions[5])
    )
    with pytest.raises(ValueError, match="not recorded from this program"):
        critical_path(other, recorded(STEP))
