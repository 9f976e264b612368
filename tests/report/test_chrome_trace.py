"""Timelines as a viewer reads them: every edge to the nanosecond, nothing overlaps, waits are told."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import given, settings
from strategies import part_of_ps, stream_programs

from moesim.engine import Meet, Program, Receive, Resource, Run, Send, durations_ps
from moesim.engine.events import simulate
from moesim.report.chrome_trace import excerpt, write_timeline

NS_PS, US_PS = 1_000, 1_000_000
ALL = np.array([0, 0])


def events_of(program, folder, **options):
    recorded = simulate(program, durations_ps(program)).recorded
    path = write_timeline(program, recorded, folder / "t.json.gz", **options)
    return json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def slices_of(program, folder):
    return [event for event in events_of(program, folder) if event["ph"] == "X"]


def tracks(slices, to_int=round):
    """Start and end [ns] on each track, converted as viewers do: start and duration on their own."""
    found = {}
    for event in slices:
        start, duration = (to_int(event[key] * 1000) for key in ("ts", "dur"))
        found.setdefault((event["pid"], event["tid"]), []).append((start, start + duration))
    return {track: sorted(spans) for track, spans in found.items()}


def run(*duration_ps, stream="compute", **named):
    return Run(stream, (part_of_ps(duration_ps),), **named)


def told(slices, rank):
    return [(e["name"], e["ts"], e["dur"]) for e in slices if e["pid"] == rank]


@pytest.mark.parametrize("to_int", [round, int])
def test_odd_picoseconds_do_not_make_neighbours_overlap(tmp_path, to_int):
    # each is rounded up on its own, their sum is not
    program = Program(2, ("compute",), tuple(run(1_600 + i, 1_500) for i in range(400))).check()
    for spans in tracks(slices_of(program, tmp_path), to_int).values():
        assert len(spans) == 400
        assert all(after[0] == before[1] for before, after in zip(spans, spans[1:], strict=False))


@settings(max_examples=25)
@given(program=stream_programs(resources=True))
def test_no_track_of_any_program_overlaps(program, tmp_path_factory):
    scaled = durations_ps(program).scaled(7_919)  # nanoseconds and picoseconds both matter
    recorded = simulate(program, scaled).recorded
    path = write_timeline(program, recorded, tmp_path_factory.mktemp("t") / "t.json.gz")
    slices = [e for e in json.loads(gzip.decompress(path.read_bytes()))["traceEvents"] if e["ph"] == "X"]
    for spans in tracks(slices).values():
        assert all(after[0] >= before[1] for before, after in zip(spans, spans[1:], strict=False))
    ends = [end for spans in tracks(slices).values() for _, end in spans]
    assert max(ends, default=0) == (recorded.makespan_ps() + NS_PS // 2) // NS_PS


def test_waits_for_others_are_slices(tmp_path):
    link = Resource("link", np.array([0, 0]))
    program = Program(
        2,
        ("compute",),
        (
            run(2 * US_PS, 5 * US_PS),
            Meet("compute", ALL, (part_of_ps([US_PS, US_PS]),)),
            run(4 * US_PS, 0),
            Send("compute", np.array([1, -1]), (part_of_ps([US_PS, 0]),)),
            Receive("compute", np.array([-1, 0])),
            run(3 * US_PS, 3 * US_PS, resource=link),
        ),
    ).check()
    slices = slices_of(program, tmp_path)
    waits = [[row for row in told(slices, rank) if row[0].startswith("wait")] for rank in (0, 1)]
    assert waits[0] == [("wait for the last rank", 2, 3)]
    # rank 0 holds the link while rank 1 has its message
    assert waits[1] == [("wait for a message", 6, 5), ("wait for link", 11, 3)]
    assert {e["cat"] for e in slices if e["name"].startswith("wait")} == {"wait"}


def test_devices_are_named_and_in_order(tmp_path):
    program = Program(12, ("compute", "comm"), (run(*[US_PS] * 12),)).check()
    events = [e for e in events_of(program, tmp_path, ranks=[2, 11]) if e["ph"] == "M"]
    names = {(e["name"], e["pid"]): e["args"] for e in events if e["tid"] == 0}
    assert names["process_name", 11] == {"name": "device 11"}
    assert names["process_sort_index", 11] == {"sort_index": 11}
    assert {e["pid"] for e in events} == {2, 11}


def test_excerpt_of_an_empty_program_has_no_rows():
    program = Program(2, ("compute",), ()).check()
    assert excerpt(program, simulate(program, durations_ps(program)).recorded)["rows"] == []


@pytest.mark.parametrize("layers", [1, 3])
def test_excerpt_keeps_to_middle_layers(layers):
    steps = [run(US_PS, (1 + layer) * US_PS, layer=layer) for layer in range(6)]
    program = Program(2, ("compute",), tuple(steps)).check()
    view = excerpt(program, simulate(program, durations_ps(program)).recorded, num_layers=layers)
    shown = {span[2] for row in view["rows"] for span in row["spans"]}
    assert shown == set(range(3, 3 + layers))
    assert {row["rank"] for row in view["rows"]} == {0, 1}
