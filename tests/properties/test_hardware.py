"""Whatever stands in a description: it is either a machine or an InputError, never another exception."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import InputError
from moesim.files import Tree
from moesim.hardware import Cluster, load_cluster, resolve_cluster

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from(["", "h200_x8", "h100_sxm", "nothing", "bf16"]),
    st.just([]),
    st.just({}),
    st.just({"profile": "h200_x8"}),
    st.just({"profile": "h100_sxm", "num_units": 3}),
    st.just({"profile": 4}),
    st.just({"a": {"b": 1.5}}),
)
WHOLE = resolve_cluster(Tree({"cluster": "h200_x32"})).data["cluster"]
OVERRIDE = {
    "profile": "h200_x32",
    "num_nodes": 2,
    "sources": {"num_nodes": "assumed: x"},
    "node": {
        "profile": "h200_x8",
        "pim": {"profile": "duplex_logic_pim", "host_memory_of": "h200_sxm"},
        "host": {"cpu": {"profile": "grace"}, "ssd": {"latency_s": 1e-4}},
        "device": {
            "launch_s": 1e-6,
            "memory": {"hbm": {"latency_s": 1e-6}},
            "sources": {"launch_s": "assumed: x"},
        },
    },
}


def places(data, keys=()):
    yield keys
    if isinstance(data, dict):
        for key, value in data.items():
            yield from places(value, (*keys, key))


def put(data, keys, value):
    if not keys:
        return value
    inner = copy.copy(data)
    inner[keys[0]] = put(data[keys[0]], keys[1:], value)
    return inner


@pytest.mark.parametrize("base", [WHOLE, OVERRIDE], ids=["whole", "override"])
def test_unbroken_descriptions_load(base):
    assert load_cluster(Tree(base)).node.device.name == "h200_sxm"


@given(st.sampled_from([WHOLE, OVERRIDE]), st.data())
@settings(max_examples=100)
def test_broken_descriptions_are_input_errors(base, data):
    broken = put(base, data.draw(st.sampled_from(list(places(base)))), data.draw(JUNK))
    try:
        problems = ()
        assert isinstance(load_cluster(Tree(broken)), Cluster)
    except InputError as error:
        problems = error.problems
    assert all(problem.message for problem in problems)


@given(st.data())
@settings(max_examples=50)
def test_resolving_twice_changes_nothing(data):
    broken = put(OVERRIDE, data.draw(st.sampled_from(list(places(OVERRIDE)))), data.draw(JUNK))
    try:
        once = resolve_cluster(Tree({"cluster": broken}))
    except InputError:
        return
    assert resolve_cluster(once).data == once.data
