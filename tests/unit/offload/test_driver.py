"""The driver: its clocks are those of the event interpreter, and what must hold of any machine does."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.engine import events
from moesim.engine.durations import durations_ps
from moesim.engine.program import Part
from moesim.errors import InputError
from moesim.evidence import Estimate
from moesim.memory.caches import cache_policies, replay
from moesim.memory.demand import Demand
from moesim.offload import Costs, Offload, executors, prefetchers, simulate
from moesim.offload.costs import Attention, FarMemory, Pieces, Unit
from moesim.offload.throughput import ring_pass_s

LAYERS, EXPERTS, TOP_K = 3, 12, 3


def demand(seed=0, passes=12):
    rng = np.random.default_rng(seed)
    ids = np.argsort(rng.random((passes, LAYERS, EXPERTS)) + 0.04 * np.arange(EXPERTS), axis=-1)
    ids = ids[..., :TOP_K].astype(np.int32)
    weights = rng.random(ids.shape).astype(np.float32)
    return Demand(
        EXPERTS, ids, rng.integers(1, 5, ids.shape).astype(np.int32), np.zeros(passes, bool), weights
    )


def lasting(seconds):
    return Estimate(seconds, "x", "assumed", 0.1)


def costs(**changes):
    def part(s):
        return [Part("x", "compute", lasting(s))]

    made = Costs(
        before=[part(1e-4)] * (LAYERS + 1),
        after=[part(2e-5)] * (LAYERS + 1),
        moe_layers=range(1, LAYERS + 1),
        first=part(1e-5),
        last=part(3e-5),
        device=Unit(lambda n: 3e-5 + 1e-6 * n, lasting(0.0), 1e-5),
        copy=lasting(4e-4),
        cpu=Unit(lambda n: 2e-4 + 1e-5 * n, lasting(0.0), 1e-4),
        pim=Unit(lambda n: 1.5e-4 + 3e-5 * n, lasting(0.0)),
        disk=lasting(1e-3),
        cpu_slowdown=1.3,
    )
    return replace(made, **changes)


def offload(slots=5, executor="device", prefetch="none", cache="lru", **more):
    held = np.full(LAYERS, slots)
    return Offload(
        cache_policies.build(cache), held, executors.build(executor), prefetchers.build(prefetch), **more
    )


def host(slots, cache="lru"):
    return {"host_cache": cache_policies.build(cache), "host_slots": np.full(LAYERS, slots)}


def _attention(lane):
    part = [Part("attention", "compute", lasting(7e-5))]
    return [None, *[Attention(lane, part, part)] * LAYERS]


MACHINES = {
    "plain": {},
    "matrices": {"pieces": Pieces((0.25, 0.25, 0.5), 2e-5, computed_apart=True)},
    "bit planes": {"pieces": Pieces((0.25, 0.75), 2e-5, planes=True)},
    "cxl": {
        "cxl": FarMemory(lasting(5e-4), lasting(6e-4), Unit(lambda n: 5e-4 + 1e-5 * n, lasting(0.0), 1e-4))
    },
    "sockets": {"cpu_queues": 2},
    "attention on the CPU": {"attention": _attention("cpu")},
    "attention near memory": {"attention": _attention("pim"), "pim_shares_memory": True},
}
"""Machines beside the plain one: what each adds to it."""


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.sampled_from(executors.names()),
    st.sampled_from(prefetchers.names()),
    st.sampled_from(["lru", "frequency_static", "mrs"]),
    st.booleans(),
    st.sampled_from([None, "lru", "frequency_static"]),
    st.sampled_from(list(MACHINES)),
    st.sampled_from([0, 0, 2, 5]),
    st.booleans(),
)
def test_the_event_interpreter_ends_when_the_driver_says(
    seed, executor, prefetch, cache, pooled, host_cache, machine, buffer, filled
):
    more = host(8, host_cache) if host_cache else {}
    plan = offload(5, executor, prefetch, cache, pooled=pooled, buffer=buffer, filled=filled, **more)
    run = simulate(demand(seed), costs(**MACHINES[machine]), plan, seed=seed, record_passes=12)
    done = events.simulate(run.program, durations_ps(run.program))
    device = run.program.streams.index("device")
    assert done.clocks_ps[device, 0] == run.pass_ends_ps[-1]


def test_everything_near_is_the_sum_of_its_parts():
    wanted = demand()
    run = simulate(wanted, costs(), offload(EXPERTS, cache="frequency_static"))
    experts = (3e-5 + 1e-6 * wanted.tokens).sum() + wanted.num_passes * LAYERS * 1e-5
    rest = wanted.num_passes * (1e-5 + 3e-5 + (LAYERS + 1) * 1e-4 + LAYERS * 2e-5)
    assert run.pass_ends_ps[-1] / 1e12 == pytest.approx(experts + rest, rel=1e-9)
    assert run.tally.hits == run.tally.lookups


@pytest.mark.parametrize("cache", ["lru", "lfu", "belady", "arc"])
def test_hits_are_those_of_the_replay(cache):
    wanted = demand(3)
    run = simulate(wanted, costs(), offload(5, cache=cache))
    assert run.tally.hits == replay(wanted, cache_policies.build(cache), 5).hits.sum()
    assert run.tally.hits + run.tally.loads == run.tally.lookups
    assert run.busy_ps["host to device"] == run.tally.loads * 400_000_000


@pytest.mark.parametrize("prefetch", prefetchers.names())
def test_every_copy_occupies_the_link(prefetch):
    run = simulate(demand(4), costs(), offload(5, "device", prefetch))
    copies = run.tally.loads + run.tally.prefetches
    assert run.busy_ps["host to device"] == copies * 400_000_000
    assert run.tally.useful_prefetches <= run.tally.prefetches


def test_a_buffer_lets_a_fixed_cache_receive_the_next_layer_ahead():
    wanted = demand(7)
    slow = costs(before=[[Part("x", "compute", lasting(3e-3))]] * (LAYERS + 1))
    alone = offload(2, "device", "oracle", "frequency_static")
    beside = replace(alone, buffer=TOP_K)
    without, ahead = simulate(wanted, slow, alone), simulate(wanted, slow, beside)
    assert without.tally.prefetches == 0
    assert ahead.tally.useful_prefetches == ahead.tally.prefetches > 0
    # the time before a layer is long enough for all copies: only the first layer of a pass waits
    layers = wanted.num_passes * LAYERS
    assert ahead.tally.hits >= ahead.tally.lookups * (layers - wanted.num_passes) / layers
    assert ahead.pass_ends_ps[-1] < without.pass_ends_ps[-1]
    full = simulate(wanted, slow, replace(alone, buffer=2 * TOP_K))
    assert full.pass_ends_ps[-1] <= ahead.pass_ends_ps[-1]


def test_a_filled_cache_begins_with_what_was_used_most():
    wanted = demand(8)
    empty, filled = (simulate(wanted, costs(), replace(offload(5, "cpu"), filled=f)) for f in (False, True))
    assert empty.tally.hits == 0  # the CPU computes what is missing, and nothing ever enters
    assert (
        filled.tally.hits == simulate(wanted, costs(), offload(5, "cpu", cache="frequency_static")).tally.hits
    )


@pytest.mark.parametrize("cache", ["lru", "arc", "mrs", "frequency_static"])
def test_a_pass_may_need_more_experts_than_there_are_slots(cache):
    wanted = demand(9)
    for slots in (1, 2, TOP_K - 1):
        run = simulate(wanted, costs(), offload(slots, cache=cache))
        assert run.tally.hits + run.tally.loads == run.tally.lookups
        assert run.tally.hits == replay(wanted, cache_policies.build(cache), slots).hits.sum()


def test_wrong_prefetches_only_cost():
    wanted = demand(5, passes=60)
    slow = costs(before=[[Part("x", "compute", lasting(3e-3))]] * (LAYERS + 1))
    good = replace(offload(6), prefetcher=prefetchers.build("next_layer_gate", {"accuracy": [1.0]}))
    bad = replace(offload(6), prefetcher=prefetchers.build("next_layer_gate", {"accuracy": [0.0]}))
    right, none, wrong = (simulate(wanted, slow, plan) for plan in (good, offload(6), bad))
    assert right.pass_ends_ps[-1] < none.pass_ends_ps[-1] < wrong.pass_ends_ps[-1]
    assert right.tally.useful_prefetches == right.tally.prefetches
    assert wrong.tally.hits < none.tally.hits


def test_list_scheduling_is_no_slower_than_either_engine_alone():
    wanted = demand(6, passes=40)
    times = {
        name: simulate(wanted, costs(pim=None, cpu_slowdown=1.0), offload(5, name, cache="frequency_static"))
        for name in ("device", "cpu", "list_schedule")
    }
    ends = {name: run.pass_ends_ps[-1] for name, run in times.items()}
    assert ends["list_schedule"] <= min(ends["device"], ends["cpu"])


def test_a_copy_slows_the_cpu_beside_it():
    wanted = demand(7)
    mixed = offload(5, "list_schedule")
    fast = simulate(wanted, costs(pim=None, cpu_slowdown=1.0), mixed).busy_ps["cpu"]
    shared = simulate(wanted, costs(pim=None, cpu_slowdown=2.0), offload(5, "list_schedule")).busy_ps["cpu"]
    assert fast > 0
    assert shared != fast


def test_disk_reads_come_before_copies():
    near = simulate(demand(8), costs(), offload(5))
    far = simulate(demand(8), costs(), offload(5, **host(6)))
    assert far.tally.disk_reads > 0
    assert far.busy_ps["disk to host"] == far.tally.disk_reads * 10**9
    assert far.pass_ends_ps[-1] > near.pass_ends_ps[-1]


def test_deferred_experts_shorten_the_layer_and_are_waited_for():
    plan = replace(offload(0, "cpu", cache="frequency_static"))
    late = replace(plan, executor=executors.build("cpu", {"deferred": 1}))
    at_once, deferred = (simulate(demand(9), costs(), p) for p in (plan, late))
    assert deferred.pass_ends_ps[-1] < at_once.pass_ends_ps[-1]
    assert deferred.busy_ps["cpu"] == at_once.busy_ps["cpu"]


def test_pieces_move_what_a_whole_moves_and_never_later():
    wanted = demand(9, passes=40)
    whole = simulate(wanted, costs(), offload(5))
    cut = simulate(wanted, costs(**MACHINES["matrices"]), offload(5))
    assert cut.tally.moved == pytest.approx(whole.tally.moved) == whole.tally.loads
    free = replace(costs(), pieces=Pieces((0.25, 0.25, 0.5), 0.0, computed_apart=True))
    assert simulate(wanted, free, offload(5)).pass_ends_ps[-1] <= whole.pass_ends_ps[-1]


def test_low_bits_stay_and_are_completed_later():
    wanted = demand(10, passes=40)
    run = simulate(wanted, costs(**MACHINES["bit planes"]), offload(EXPERTS, "mixed_precision"))
    # with room for all, no bit of an expert travels twice
    assert run.tally.low_loads > 0
    assert run.tally.moved <= LAYERS * EXPERTS
    apart = simulate(wanted, costs(), offload(EXPERTS, "mixed_precision"))
    assert run.tally.moved <= apart.tally.moved


def test_what_lies_in_cxl_memory_is_read_there_by_a_static_host():
    wanted = demand(11, passes=40)
    plan = offload(5, **host(6, "frequency_static"))
    run = simulate(wanted, costs(**MACHINES["cxl"]), plan)
    assert run.tally.disk_reads == 0
    assert run.tally.far_reads > 0
    assert run.busy_ps["cxl"] == run.tally.far_reads * 600_000_000
    moved = simulate(wanted, costs(**MACHINES["cxl"]), offload(5, **host(6, "lru")))
    assert moved.busy_ps["cxl"] == moved.tally.far_reads * 500_000_000


def test_memory_behind_the_host_that_is_too_small_leaves_the_rest_to_the_disk():
    plan = offload(5, cxl_slots=np.full(LAYERS, 2), **host(6, "frequency_static"))
    run = simulate(demand(12, passes=40), costs(**MACHINES["cxl"]), plan)
    assert run.tally.far_reads > 0
    assert run.tally.disk_reads > 0


def test_a_ring_of_sections_never_stalls_where_loading_is_shorter_than_computing():
    """SE-MoE: whole layers pass through a ring; formula and driver agree on both sides of the edge."""
    every = np.broadcast_to(np.arange(EXPERTS, dtype=np.int32), (12, 6, EXPERTS)).copy()
    wanted = Demand(EXPERTS, every, np.ones_like(every), np.zeros(12, bool))
    plan = Offload(
        cache_policies.build("fifo"),
        np.full(6, EXPERTS // 2),
        executors.build("device"),
        prefetchers.build("ring", {"ahead": 2}),
        pooled=True,
    )
    for copy_s in (2e-5, 2e-4):
        machine = replace(
            costs(),
            before=[[Part("x", "compute", lasting(1e-3))]] * 6,
            after=[[]] * 6,
            moe_layers=range(6),
            first=[],
            last=[],
            device=Unit(lambda n: np.zeros(n.size), lasting(0.0)),
            copy=lasting(copy_s),
        )
        run = simulate(wanted, machine, plan)
        ring = ring_pass_s(sections=6, resident=3, compute_s=1e-3, load_s=EXPERTS * copy_s)
        assert run.pass_s(6) == pytest.approx(ring, rel=0.02)
        assert (run.pass_s(6) == pytest.approx(6e-3)) == (EXPERTS * copy_s <= 1e-3)


def test_a_refused_element_is_told_alone():
    with pytest.raises(InputError) as refused:
        prefetchers.build("next_layer_gate", {"accuracy": [1.2]}, field="memory.prefetch")
    assert [problem.field for problem in refused.value.problems] == ["memory.prefetch.accuracy.0"]
