"""Programs: what is refused and why, and the rewrites."""

import numpy as np
import pytest
from strategies import part, part_of_ps

from moesim.engine import (
    Meet,
    Program,
    Receive,
    Resource,
    Run,
    Send,
    Wait,
    concatenated,
    durations_ps,
    vector,
)
from moesim.engine.links import match_messages

STREAMS = ("compute", "comm")
WORLD = np.array([0, 0, 0])


def of(*instructions, num_ranks=3, streams=STREAMS):
    return Program(num_ranks, streams, instructions)


def clocks(program):
    return vector.run(vector.compile(program), durations_ps(program)).clocks_ps[:, 0]


WRONG = {
    "unknown stream 'comput'; did you mean 'compute'?": Run("comput", ()),
    "on: unknown stream 'nic'": Wait("compute", "nic"),
    "'comm' waits for itself": Wait("comm", "comm"),
    "seconds have shape (2,); accepted: () or (3,)": Run("comm", (part(np.ones(2)),)),
    "got seconds -1.0; accepted: finite numbers >= 0": Run("comm", (part(-1.0),)),
    "got seconds nan": Meet("comm", WORLD, (part(float("nan")),)),
    "got seconds inf": Meet("comm", WORLD, (part(float("inf")),)),
    "got sigma -0.1": Run("comm", (part(1.0, sigma=-0.1),)),
    "group: got int64 array (2,); accepted: integer array (3,)": Meet("comm", WORLD[:2], ()),
    "group: got float64 array (3,)": Meet("comm", np.zeros(3), ()),
    "group: got list; accepted: integer array (3,)": Meet("comm", [0, 0, 0], ()),
    "group: [4, 7] have one member": Meet("comm", np.array([7, -1, 4]), ()),
    "group: got -2; accepted: >= -1": Meet("comm", np.array([-2, 0, 0]), ()),
    "ranks: got int64 array (3,); accepted: bool array (3,)": Run("comm", (), ranks=WORLD),
    "no rank takes part": Wait("comm", "compute", ranks=np.zeros(3, dtype=np.bool_)),
    "to: got rank 3; accepted: below 3": Send("comm", np.array([3, -1, -1]), ()),
    "to: rank 1 names itself": Send("comm", np.array([-1, 1, -1]), ()),
    "sender: rank 0 names itself": Receive("comm", np.array([0, -1, -1])),
    "(Receive): no Send precedes it for rank 2": Receive("comm", np.array([-1, -1, 0])),
    "(Send): nobody receives the message of rank 1": Send("comm", np.array([-1, 0, -1]), ()),
    "resource.index: got int64 array (2,)": Run("comm", (), resource=Resource("link", WORLD[:2])),
}


@pytest.mark.parametrize("message", WRONG)
def test_problem_is_named(message):
    with pytest.raises(ValueError, match="program: 1 problem\n") as caught:
        of(WRONG[message]).check()
    assert message in str(caught.value)


def test_all_problems_are_told_at_once():
    with pytest.raises(ValueError, match="program: 4 problems") as caught:
        Program(3, ("a", "a"), (Run("b", (part(-1.0),)), Run("a", ()), Run("c", ()))).check()
    assert "streams: got ('a', 'a')" in str(caught.value)
    assert "instruction 2 (Run): stream: unknown stream 'c'" in str(caught.value)


def test_shared_arrays_are_judged_per_kind_of_instruction():
    shared = np.array([1, 0, -1])  # a fine pair of messages, and groups of one
    with pytest.raises(ValueError, match=r"instruction 2 \(Meet\): group: \[0, 1\] have one member"):
        of(Send("comm", shared, ()), Receive("comm", shared), Meet("comm", shared, ())).check()


def test_no_ranks_and_no_streams():
    with pytest.raises(ValueError, match=r"num_ranks: got 0[^\n]*\n  streams: got \(\)"):
        Program(0, (), ()).check()


def test_messages_are_first_in_first_out_per_pair():
    program = of(
        Send("compute", np.array([1, -1, 1]), ()),
        Send("comm", np.array([1, -1, -1]), ()),
        Receive("comm", np.array([-1, 0, -1])),
        Receive("compute", np.array([-1, 2, -1])),
        Receive("compute", np.array([-1, 0, -1])),
    ).check()
    assert match_messages(program).source == {(2, 1): (0, 0), (3, 1): (0, 2), (4, 1): (1, 0)}


def test_families_of_all_parts():
    program = of(
        Run("comm", (part(family="gemm"), part(family="attention"))),
        Meet("comm", WORLD, (part(family="gemm"),)),
    )
    assert program.families() == ("attention", "gemm")


def test_fused_runs_keep_their_parts_and_place():
    first, second = part_of_ps(1, name="first"), part_of_ps(2, name="second")
    program = of(Run("compute", (first,), 0), Run("comm", (), 0), Run("compute", (second,), 0))
    fused = program.fused().instructions
    assert [i.stream for i in fused] == ["compute", "comm"]
    assert [p.name for p in fused[0].parts] == ["first", "second"]
    assert fused[0].layer == 0


@pytest.mark.parametrize(
    "between",
    [
        Wait("comm", "compute"),
        Wait("compute", "comm"),
        Meet("compute", WORLD, ()),
        Run("compute", (), ranks=np.array([True, True, False])),
        Run("compute", (), resource=Resource("link", WORLD)),
    ],
)
def test_what_could_see_the_difference_keeps_runs_apart(between):
    work = (part_of_ps(5),)
    program = of(Run("compute", work), between, Run("compute", work))
    assert len(program.fused().instructions) == 3


def test_what_other_ranks_do_keeps_no_runs_apart():
    mine, others = np.array([True, False, False]), np.array([False, True, True])
    work = (part_of_ps(5),)
    program = of(
        Run("compute", work, ranks=mine), Wait("comm", "compute", others), Run("compute", work, ranks=mine)
    )
    assert len(program.fused().instructions) == 2
    np.testing.assert_array_equal(clocks(program.fused()), clocks(program))


def test_layers_are_fused_only_on_request():
    program = of(Run("compute", (part_of_ps(1),), 0), Run("compute", (part_of_ps(2),), 1))
    assert len(program.fused().instructions) == 2
    (merged,) = program.fused(across_layers=True).instructions
    assert merged.layer is None


def test_repeated_and_concatenated_programs():
    once = of(Run("compute", (part_of_ps(3),)), streams=("compute",))
    other = of(Wait("copy", "compute"), Run("copy", (part_of_ps(4),)), streams=("copy", "compute"))
    np.testing.assert_array_equal(clocks(once.repeated(3)), [[9, 9, 9]])
    both = concatenated([once, other])
    assert both.streams == ("compute", "copy")
    np.testing.assert_array_equal(clocks(both), [[3, 3, 3], [7, 7, 7]])
    with pytest.raises(ValueError, match=r"equal num_ranks; got \[3, 2\]"):
        concatenated([once, of(num_ranks=2)])
    with pytest.raises(ValueError, match="one or more programs"):
        concatenated([])
