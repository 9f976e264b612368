"""One MoE layer of one pass: look up, share out, copy, order ahead, compute, join."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate
from moesim.offload.costs import Unit
from moesim.offload.executors import LOAD, LOAD_LOW, ON_CPU, ON_PIM, RESIDENT, SKIP, Assignment, LayerWork
from moesim.offload.lanes import CPU, DEVICE, DISK, LINK, PIM, Mark, one
from moesim.offload.prefetchers import View
from moesim.offload.state import Ordered, State
from moesim.units import PS_PER_S

COPY, COMPUTE, CPU_KIND, PIM_KIND = "copy", "compute", "cpu_compute", "pim_compute"


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A layer of a pass: when its gate spoke, which experts it needs, what becomes of them."""

    at: int
    index: int
    layer: int
    gate: Mark
    ids: NDArray[np.int32]
    work: LayerWork
    assignment: Assignment


def moe_layer(state: State, at: int, index: int, layer: int) -> None:
    """Experts of MoE layer ``index`` (model layer ``layer``) in pass ``at``, after its gate."""
    gate = state.lanes.mark(DEVICE)
    _catch_up(state, gate.time_ps)
    ids, work = _work(state, at, index, gate)
    task = Task(at, index, layer, gate, ids, work, state.offload.executor.assign(work))
    arrived = _fetch(state, task)
    if state.offload.synchronous and arrived:
        state.lanes.wait(DEVICE, max(arrived.values(), key=lambda mark: mark.time_ps))
    away = [_elsewhere(state, task, kind) for kind in (ON_PIM, ON_CPU)]
    _order(state, task)
    state.lanes.run(DEVICE, state.costs.after[layer], layer)
    _on_device(state, task, arrived)
    if state.late is not None:
        state.lanes.wait(DEVICE, state.late)
    state.late = None
    for prompt, deferred in away:
        if prompt is not None:
            state.lanes.wait(DEVICE, prompt)
        state.late = deferred or state.late


def _work(state: State, at: int, index: int, gate: Mark) -> tuple[NDArray[np.int32], LayerWork]:
    """Experts of the layer and what the executor may know about them."""
    demand, costs, lanes = state.demand, state.costs, state.lanes
    places = demand.ids[at, index]
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
    state.tally.lookups += ids.size
    state.tally.hits += int(found.sum())
    tokens = demand.tokens[at, index][real].astype(np.int64)
    ready = np.zeros(ids.size)
    for k in np.flatnonzero(found).tolist():
        key = (row, int(ids[k]) + offset)
        if key in state.unused:
            state.unused.discard(key)
            state.tally.useful_prefetches += 1
        mark = state.ready.get(key)
        if mark is not None:
            ready[k] = mark.time_ps / PS_PER_S
    share = np.full(ids.size, 1.0 / max(1, ids.size)) if weights is None else weights / weights.sum()
    return ids, LayerWork(
        tokens,
        found,
        ready,
        share,
        costs.device.seconds(tokens),
        _times(costs.cpu, tokens),
        _times(costs.pim, tokens),
        float(costs.copy.seconds),
        gate.time_ps / PS_PER_S,
        lanes.clock[LINK] / PS_PER_S,
        lanes.clock[CPU] / PS_PER_S,
    )


def _times(unit: Unit | None, tokens: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.full(tokens.size, np.inf) if unit is None else unit.seconds(tokens)


def _catch_up(state: State, now_ps: int) -> None:
    """Copies ordered ahead that began before ``now_ps``, while the link was idle."""
    while state.ordered:
        copy = state.ordered[0]
        if max(state.lanes.clock[LINK], copy.issued.time_ps) >= now_ps:
            return
        state.ordered.popleft()
        row, offset = state.place(copy.layer)
        expert = copy.expert + offset
        if state.cache.slot_of[row, expert] >= 0 or not state.cache.insert(row, expert, copy.keep + offset):
            continue
        arrived = _copy(state, copy.layer, copy.expert, None, copy.issued, "prefetch", 1.0)
        state.ready[row, expert] = arrived
        state.unused.add((row, expert))
        state.tally.prefetches += 1


def _fetch(state: State, task: Task) -> dict[int, Mark]:
    """Copies that the layer waits for, and their arrivals by place in ``ids``."""
    ids, assignment, index = task.ids, task.assignment, task.index
    state.ordered = type(state.ordered)(o for o in state.ordered if o.layer != index)
    fates = assignment.fates
    if state.host is not None:
        state.host.ranking.touch(np.array([[index]]), ids[None, :], task.at, None)
    arrived: dict[int, Mark] = {}
    for k in assignment.order.tolist():
        if fates[k] in (LOAD, LOAD_LOW):
            low = fates[k] == LOAD_LOW
            size = state.costs.low_precision_fraction if low else 1.0
            name = "expert copy, low precision" if low else "expert copy"
            arrived[k] = _copy(state, index, int(ids[k]), task.layer, task.gate, name, size)
    whole = fates == LOAD
    state.tally.loads += int(whole.sum())
    state.tally.low_loads += len(arrived) - int(whole.sum())
    state.tally.skipped += int((fates == SKIP).sum())
    if whole.any():
        row, offset = state.place(index)
        rows, wanted = np.array([[row]]), ids[None, :] + offset
        state.cache.load(rows, wanted, whole[None, :])
        for k in np.flatnonzero(whole).tolist():
            state.ready[row, int(ids[k]) + offset] = arrived[k]
    return arrived


def _copy(
    state: State, index: int, expert: int, layer: int | None, after: Mark, name: str, size: float
) -> Mark:
    """One expert over the link, from disk first where the host lacks it; when it has arrived."""
    costs, lanes = state.costs, state.lanes
    on_host = _from_disk(state, index, expert, after)
    lanes.wait(LINK, on_host)
    lanes.run(LINK, one(name, COPY, _scaled(costs.copy, size)), layer)
    return lanes.mark(LINK)


def _from_disk(state: State, index: int, expert: int, after: Mark) -> Mark:
    """When an expert is in host memory, fetched there if need be."""
    host, disk = state.host, state.costs.disk
    if host is None or disk is None:
        return after
    state.tally.host_lookups += 1
    if host.slot_of[index, expert] >= 0:
        return after
    state.tally.disk_reads += 1
    host.insert(index, expert, np.array([expert], np.int32))
    state.lanes.wait(DISK, after)
    state.lanes.run(DISK, one("expert from disk", COPY, disk), None)
    return state.lanes.mark(DISK)


def _elsewhere(state: State, task: Task, kind: int) -> tuple[Mark | None, Mark | None]:
    """Experts of the CPU or of near-memory units: end of the prompt ones, end of the deferred ones."""
    unit, lane, label = (
        (state.costs.cpu, CPU, CPU_KIND) if kind == ON_CPU else (state.costs.pim, PIM, PIM_KIND)
    )
    fates = task.assignment.fates
    mine = [k for k in task.assignment.order.tolist() if fates[k] == kind]
    if not mine or unit is None:
        return None, None
    lanes = state.lanes
    lanes.wait(lane, task.gate)
    if kind == ON_CPU:
        state.tally.on_cpu += len(mine)
        for k in mine:
            lanes.wait(lane, _from_disk(state, task.index, int(task.ids[k]), task.gate))
        times, late = task.work.cpu_s[mine], min(state.offload.executor.deferred, len(mine) - 1)
    else:
        state.tally.on_pim += len(mine)
        times, late = task.work.pim_s[mine], 0
    ends: list[Mark | None] = []
    for number, group in enumerate((times[: len(mine) - late], times[len(mine) - late :])):
        if not group.size:
            ends.append(None)
            continue
        seconds = float(group.sum()) + (unit.first_s if number == 0 else 0.0)
        if kind == ON_CPU:
            seconds = _slowed(seconds, lanes.clock[CPU], lanes.clock[LINK], state.costs.cpu_slowdown)
        lanes.run(
            lane,
            one(
                "experts on the CPU" if kind == ON_CPU else "experts near memory",
                label,
                unit.evidence(seconds),
            ),
            task.layer,
        )
        ends.append(lanes.mark(lane))
    return ends[0], ends[1]


def _slowed(seconds: float, start_ps: int, link_free_ps: int, slowdown: float) -> float:
    """Length of CPU work that shares memory with copies until ``link_free_ps``; copies go first. [s]"""
    shared = max(0, link_free_ps - start_ps) / PS_PER_S
    if seconds * slowdown <= shared:
        return seconds * slowdown
    return seconds + shared * (1 - 1 / slowdown)


def _order(state: State, task: Task) -> None:
    """What the prefetcher wants joins the queue of the link."""
    view = View(state.demand, task.at, task.index, state.cache, state.offload.pooled)
    for layer, experts in state.predictor.wanted(view):
        waiting = {o.expert for o in state.ordered if o.layer == layer}
        for expert in experts.tolist():
            if expert not in waiting:
                state.ordered.append(Ordered(layer, expert, experts, task.gate))


def _on_device(state: State, task: Task, arrived: dict[int, Mark]) -> None:
    """Cached experts, those that are there first, then each copied one as it arrives."""
    lanes, unit = state.lanes, state.costs.device
    ids, work, assignment, layer = task.ids, task.work, task.assignment, task.layer
    row, offset = state.place(task.index)
    resident = [k for k in assignment.order.tolist() if assignment.fates[k] == RESIDENT]
    first_s = unit.first_s
    now_s = lanes.clock[DEVICE] / PS_PER_S
    here = [k for k in resident if work.ready_s[k] <= now_s]
    coming = sorted((k for k in resident if work.ready_s[k] > now_s), key=lambda k: float(work.ready_s[k]))
    batches: list[tuple[list[int], Mark | None]] = [(here, None)] if here else []
    batches += [([k], state.ready.get((row, int(ids[k]) + offset))) for k in coming]
    batches += [([k], mark) for k, mark in arrived.items()]
    for members, mark in batches:
        if mark is not None:
            lanes.wait(DEVICE, mark)
        seconds = float(work.device_s[members].sum()) + first_s
        first_s = 0.0
        lanes.run(DEVICE, one("experts", COMPUTE, unit.evidence(seconds)), layer)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return (
        estimate
        if factor == 1.0
        else Estimate(float(estimate.seconds) * factor, estimate.family, estimate.grade, estimate.sigma)
    )
