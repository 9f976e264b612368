"""One MoE layer of one pass: look up, share out, copy, order ahead, compute, join."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.offload.executors import LOAD, LOAD_LOW, ON_CPU, ON_PIM, RESIDENT, SKIP, LayerWork
from moesim.offload.lanes import CPU, CXL, DEVICE, LINK, PIM, Mark
from moesim.offload.prefetchers import View
from moesim.offload.sources import fetch_s, pieces_s, reads_far, to_device, to_host
from moesim.offload.state import Ordered, State
from moesim.units import PS_PER_S

COMPUTE, CPU_KIND, PIM_KIND = "compute", "cpu_compute", "pim_compute"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A layer of a pass: when its gate spoke, which experts it needs, what becomes of them."""

    at: int
    index: int
    layer: int
    gate: Mark
    ids: NDArray[np.int32]
    work: LayerWork
    order: list[int]
    fates: list[int]


def moe_layer(state: State, at: int, index: int, layer: int) -> None:
    """Experts of MoE layer ``index`` (model layer ``layer``) in pass ``at``, after its gate."""
    gate = state.lanes.mark(DEVICE)
    _catch_up(state, gate.time_ps)
    ids, work = _work(state, at, index, gate)
    assignment = state.offload.executor.assign(work)
    order, fates = assignment.order.tolist(), assignment.fates.tolist()
    task = Task(at, index, layer, gate, ids, work, order, fates)
    arrived = _fetch(state, task)
    if state.offload.synchronous and arrived:
        state.lanes.wait(DEVICE, max((marks[-1] for marks in arrived.values()), key=lambda m: m.time_ps))
    away = [_elsewhere(state, task, kind) for kind in (ON_PIM, ON_CPU)]
    _order(state, task)
    if state.costs.after[layer]:
        state.lanes.run(DEVICE, state.costs.after[layer], layer)
    _on_device(state, task, arrived)
    if state.late is not None:
        state.lanes.wait(DEVICE, state.late)
    state.late = None
    for prompt, deferred in away:
        if prompt is not None:
            state.lanes.wait(DEVICE, prompt)
        state.late = deferred or state.late
    _release(state, index)


def _release(state: State, index: int) -> None:
    """The layer is through: what the buffer held for it makes room."""
    through = state.buffer.taken(index)
    if not through:
        return
    free = state.lanes.mark(DEVICE)
    for key in through:
        del state.buffer.held[key]
        state.unused.discard(key)
        if state.cache.slot_of[key] < 0:
            state.lacking.pop(key, None)
        state.buffer.room.append(free)


def _work(state: State, at: int, index: int, gate: Mark) -> tuple[NDArray[np.int32], LayerWork]:
    """Experts of the layer and what the executor may know about them."""
    demand, costs, lanes = state.demand, state.costs, state.lanes
    places = demand.ids[at, index]
    real: NDArray[np.bool_] | slice = slice(None)
    if int(places.max()) == demand.num_experts:
        real = places < demand.num_experts
    ids = places[real]
    row, offset = state.place(index)
    weights = None if demand.weights is None else demand.weights[at, index][real]
    found = state.cache.look_up(
        np.array([[row]]),
        ids[None, :] + offset,
        at * demand.num_layers + index if state.offload.pooled else at,
        None if weights is None else weights[None, :],
    )[0]
    keys = [(row, expert + offset) for expert in ids.tolist()]
    if state.buffer.held:
        found |= np.array([key in state.buffer.held for key in keys], np.bool_)
    whole = found
    if state.lacking:
        whole = found & np.array([key not in state.lacking for key in keys], np.bool_)
    state.tally.lookups += ids.size
    state.tally.hits += int(np.count_nonzero(whole))
    tokens = demand.tokens[at, index][real].astype(np.int64)
    return ids, LayerWork(
        tokens,
        whole,
        _ready_s(state, keys, found),
        np.full(ids.size, 1.0 / max(1, ids.size)) if weights is None else weights / weights.sum(),
        state.times("device", costs.device, tokens),
        _cpu_times(state, index, ids, tokens),
        _pim_times(state, tokens, found),
        _copy_times(state, index, ids, keys, found),
        gate.time_ps / PS_PER_S,
        lanes.clock[LINK] / PS_PER_S,
        lanes.clock[CPU] / PS_PER_S,
    )


def _ready_s(state: State, keys: list[tuple[int, int]], found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """When each present expert can be used; prefetched ones count as used from here on. [s]"""
    ready = np.zeros(len(keys))
    for k, present in enumerate(found.tolist()):
        if not present:
            continue
        key = keys[k]
        if key in state.unused:
            state.unused.discard(key)
            state.tally.useful_prefetches += 1
        mark = state.ready.get(key)
        if mark is not None:
            ready[k] = mark.time_ps / PS_PER_S
    return ready


def _cpu_times(
    state: State, index: int, ids: NDArray[np.int32], tokens: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Time of each expert on the CPU, from the memory that holds it. [s]"""
    near = state.times("cpu", state.costs.cpu, tokens)
    cxl = state.costs.cxl
    if state.far is None or cxl is None or cxl.cpu is None:
        return near
    far = np.array([reads_far(state, index, int(expert)) for expert in ids], np.bool_)
    return np.where(far, cxl.cpu.seconds(tokens), near)


def _pim_times(state: State, tokens: NDArray[np.int64], found: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Time of each expert near memory; units in the device's memory see only what lies there. [s]"""
    times = state.times("pim", state.costs.pim, tokens)
    return np.where(found, times, np.inf) if state.costs.pim_shares_memory else times


def _copy_times(
    state: State, index: int, ids: NDArray[np.int32], keys: list[tuple[int, int]], found: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Time until each expert, or what the device lacks of it, is through the link. [s]"""
    count = len(state.costs.pieces.shares)
    if count == 1 and state.host is None:
        return np.full(ids.size, float(state.costs.copy.seconds))
    times = np.empty(ids.size)
    for k, expert in enumerate(ids.tolist()):
        first = count - state.lacking[keys[k]] if found[k] and keys[k] in state.lacking else 0
        times[k] = fetch_s(state, index, expert) + pieces_s(
            state, reads_far(state, index, expert), range(first, count)
        )
    return times


def _catch_up(state: State, now_ps: int) -> None:
    """Copies ordered ahead that began before ``now_ps``, while the link was idle."""
    last = len(state.costs.pieces.shares) - 1
    while state.ordered:
        copy = state.ordered[0]
        if max(state.lanes.clock[LINK], copy.issued.time_ps) >= now_ps:
            return
        state.ordered.popleft()
        row, offset = state.place(copy.layer)
        key = (row, copy.expert + offset)
        if copy.piece == 0:
            if state.near(key):
                continue
            if not state.cache.insert(*key, copy.keep + offset) and not _staged(state, copy, key, now_ps):
                if state.offload.buffer:
                    state.ordered.appendleft(copy)
                    return
                continue
            state.unused.add(key)
            state.tally.prefetches += 1
        elif not state.near(key) or state.lacking.get(key) != last - copy.piece + 1:
            continue
        state.ready[key] = to_device(
            state, copy.layer, copy.expert, [copy.piece], after=copy.issued, layer=None, name="prefetch"
        )[0]
        _lacks(state, key, last - copy.piece)
        if copy.piece < last:
            state.ordered.appendleft(replace(copy, piece=copy.piece + 1))


def _staged(state: State, copy: Ordered, key: tuple[int, int], now_ps: int) -> bool:
    """Whether the buffer has room for an expert before ``now_ps``; then it is taken."""
    room = state.buffer.room
    if not room or room[0].time_ps >= now_ps:
        return False
    if room[0].time_ps > state.lanes.clock[LINK]:
        state.lanes.wait(LINK, room[0])
    state.buffer.put(key, copy.layer)
    return True


def _lacks(state: State, key: tuple[int, int], pieces: int) -> None:
    """A cached expert lacks its last ``pieces``."""
    if pieces:
        state.lacking[key] = pieces
    else:
        state.lacking.pop(key, None)


def _fetch(state: State, task: Task) -> dict[int, list[Mark]]:
    """Copies that the layer waits for: arrivals of their pieces by place in ``ids``."""
    ids, index = task.ids, task.index
    if state.ordered:
        state.ordered = type(state.ordered)(o for o in state.ordered if o.layer != index)
    fates, cut = task.fates, state.costs.pieces
    if state.host is not None:
        state.host.ranking.touch(np.array([[index]]), ids[None, :], task.at, None)
    row, offset = state.place(index)
    arrived: dict[int, list[Mark]] = {}
    for k in task.order:
        if fates[k] not in (LOAD, LOAD_LOW):
            continue
        expert, low = int(ids[k]), fates[k] == LOAD_LOW
        held = _held_pieces(state, (row, expert + offset))
        wanted = range(held, 1) if low and cut.planes else range(held, len(cut.shares))
        arrived[k] = to_device(
            state,
            index,
            expert,
            wanted,
            after=task.gate,
            layer=task.layer,
            name="expert copy, low precision" if low else "expert copy",
            size=state.costs.low_precision_fraction if low and not cut.planes else 1.0,
        )
    _enter(state, task, arrived)
    return {k: marks for k, marks in arrived.items() if marks}


def _held_pieces(state: State, key: tuple[int, int]) -> int:
    """Pieces of an expert on the device; 0 where it is not in the cache."""
    if not state.near(key):
        return 0
    return len(state.costs.pieces.shares) - state.lacking.get(key, 0)


def _enter(state: State, task: Task, arrived: Mapping[int, list[Mark]]) -> None:
    """What was copied joins the cache: whole experts, and those in low precision where that is a part."""
    fates, cut, tally = task.fates, state.costs.pieces, state.tally
    tally.loads += fates.count(LOAD)
    tally.low_loads += fates.count(LOAD_LOW)
    tally.skipped += fates.count(SKIP)
    entering = (LOAD, LOAD_LOW) if cut.planes else (LOAD,)
    kept = [k for k, fate in enumerate(fates) if fate in entering]
    if not kept:
        return
    row, offset = state.place(task.index)
    ids = task.ids + offset
    new = np.zeros(ids.size, np.bool_)
    new[kept] = state.cache.slot_of[row, ids[kept]] < 0
    state.cache.load(np.array([[row]]), ids[None, :], new[None, :])
    for k in kept:
        key = (row, int(ids[k]))
        if arrived[k]:
            state.ready[key] = arrived[k][-1]
        if fates[k] == LOAD:
            state.lacking.pop(key, None)
        elif new[k]:
            _lacks(state, key, len(cut.shares) - 1)


def _elsewhere(state: State, task: Task, kind: int) -> tuple[Mark | None, Mark | None]:
    """Experts of the CPU or of near-memory units: end of the prompt ones, end of the deferred ones."""
    unit, lane, label, named = (
        (state.costs.cpu, CPU, CPU_KIND, "experts on the CPU")
        if kind == ON_CPU
        else (state.costs.pim, PIM, PIM_KIND, "experts near memory")
    )
    fates = task.fates
    if unit is None or kind not in fates:
        return None, None
    mine = [k for k in task.order if fates[k] == kind]
    lanes = state.lanes
    far: list[bool] = []
    lanes.wait(lane, task.gate)
    if kind == ON_CPU:
        state.tally.on_cpu += len(mine)
        far = [reads_far(state, task.index, int(task.ids[k])) for k in mine]
        for k in mine:
            lanes.wait(lane, to_host(state, task.index, int(task.ids[k]), task.gate))
        if any(far):
            lanes.wait(lane, lanes.mark(CXL))
        times, late = task.work.cpu_s[mine], min(state.offload.executor.deferred, len(mine) - 1)
    else:
        state.tally.on_pim += len(mine)
        times, late = task.work.pim_s[mine], 0
    ends: list[Mark | None] = []
    for number, group in enumerate((times[: len(mine) - late], times[len(mine) - late :])):
        if not group.size:
            ends.append(None)
            continue
        chosen = task.ids[mine[: len(mine) - late] if number == 0 else mine[len(mine) - late :]]
        queues = state.costs.cpu_queues if kind == ON_CPU else 1
        seconds = _longest_s(group, chosen, queues) + (unit.first_s if number == 0 else 0.0)
        if kind == ON_CPU:
            seconds = _slowed(seconds, lanes.clock[CPU], lanes.clock[LINK], state.costs.cpu_slowdown)
        lanes.work(lane, named, label, unit.estimate, seconds, task.layer)
        ends.append(lanes.mark(lane))
    if kind == ON_CPU and any(far):
        # the CPU read that memory while it worked: copies from there come after
        lanes.wait(CXL, lanes.mark(lane))
    return ends[0], ends[1]


def _longest_s(seconds: NDArray[np.float64], experts: NDArray[np.int32], queues: int) -> float:
    """Time of the busiest queue where expert ``i`` belongs to queue ``i`` modulo their number. [s]"""
    if queues == 1:
        return float(seconds.sum())
    return float(np.bincount(experts % queues, weights=seconds, minlength=queues).max())


def _slowed(seconds: float, start_ps: int, link_free_ps: int, slowdown: float) -> float:
    """Length of CPU work that shares memory with copies until ``link_free_ps``; copies go first. [s]"""
    shared = max(0, link_free_ps - start_ps) / PS_PER_S
    if seconds * slowdown <= shared:
        return seconds * slowdown
    return seconds + shared * (1 - 1 / slowdown)


def _order(state: State, task: Task) -> None:
    """What the prefetcher wants joins the queue of the link."""
    view = View(
        state.demand, task.at, task.index, state.cache, state.offload.pooled, state.buffer.held.keys()
    )
    for fetch in state.predictor.wanted(view):
        waiting = {o.expert for o in state.ordered if o.layer == fetch.layer}
        for expert in fetch.experts.tolist():
            if expert not in waiting:
                state.ordered.append(Ordered(fetch.layer, expert, fetch.keep, task.gate))


def _on_device(state: State, task: Task, arrived: dict[int, list[Mark]]) -> None:
    """Cached experts, those that are there first, then each copied one as it arrives."""
    lanes, unit, pieces = state.lanes, state.costs.device, state.costs.pieces
    ids, fates = task.ids, task.fates
    row, offset = state.place(task.index)
    resident = [k for k in task.order if fates[k] == RESIDENT]
    if LOAD_LOW in fates:
        # low precision that was there already moves nothing
        resident += [k for k, fate in enumerate(fates) if fate == LOAD_LOW and k not in arrived]
    now_s = lanes.clock[DEVICE] / PS_PER_S
    ready_s, device_s = task.work.ready_s.tolist(), task.work.device_s
    here = [k for k in resident if ready_s[k] <= now_s]
    coming = sorted((k for k in resident if ready_s[k] > now_s), key=lambda k: float(ready_s[k]))
    batches: list[tuple[list[int], Mark | None, float]] = [(here, None, 1.0)] if here else []
    batches += [([k], state.ready.get((row, int(ids[k]) + offset)), 1.0) for k in coming]
    for k, marks in arrived.items():
        if pieces.computed_apart:
            shares = pieces.shares
            held = len(shares) - len(marks)
            before = sum(shares[:held])
            batches += [
                ([k], mark, shares[held + i] + (before if i == 0 else 0.0)) for i, mark in enumerate(marks)
            ]
        else:
            batches.append(([k], marks[-1], 1.0))
    first_s = unit.first_s
    for members, mark, share in batches:
        if mark is not None:
            lanes.wait(DEVICE, mark)
        total = device_s[members[0]] if len(members) == 1 else device_s[members].sum()
        lanes.work(DEVICE, "experts", COMPUTE, unit.estimate, float(total) * share + first_s, task.layer)
        first_s = 0.0
