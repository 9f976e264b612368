"""List scheduling of a layer over cached, copied in, CPU and near-memory (HybriMoE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from moesim.offload.executors import LOAD, ON_CPU, ON_PIM, RESIDENT, Assignment, LayerWork, executors


@executors.register("list_schedule")
@dataclass(frozen=True)
class ListSchedule:
    """Experts go, one by one, to the engine that is through with them first.

    HybriMoE (arXiv 2504.05897): cached experts by falling load, then missing ones by falling load; the
    device takes from the head (a missing expert waits for its copy), the CPU from the tail. A
    near-memory unit, where there is one, takes from the tail as well. ``cpu``: whether the CPU takes part.
    """

    cpu: bool = True
    deferred: ClassVar[int] = 0

    def assign(self, work: LayerWork) -> Assignment:
        """Greedy in simulated time."""
        # plain numbers: a few experts are quicker so than as arrays
        order: list[int] = np.lexsort((-work.tokens, ~work.present)).tolist()
        present, ready_s, copy_s = work.present.tolist(), work.ready_s.tolist(), work.copy_s.tolist()
        device_s, cpu_s, pim_s = work.device_s.tolist(), work.cpu_s.tolist(), work.pim_s.tolist()
        fates = [0] * len(order)
        device, cpu, pim, link = work.now_s, max(work.now_s, work.cpu_free_s), work.now_s, work.link_free_s
        head, tail = 0, len(order) - 1
        from_tail: list[int] = []
        while head <= tail:
            first, last = order[head], order[tail]
            arrived = ready_s[first] if present[first] else max(link, work.now_s) + copy_s[first]
            on_device = max(device, arrived) + device_s[first]
            on_cpu = cpu + cpu_s[last] if self.cpu else np.inf
            on_pim = pim + pim_s[last]
            if on_device <= min(on_cpu, on_pim):
                fates[first] = RESIDENT if present[first] else LOAD
                link = link if present[first] else arrived
                device = on_device
                head += 1
                continue
            if on_cpu <= on_pim:
                fates[last], cpu = ON_CPU, on_cpu
            else:
                fates[last], pim = ON_PIM, on_pim
            from_tail.append(last)
            tail -= 1
        return Assignment(np.array(fates, np.int8), np.array([*order[:head], *from_tail], np.int64))
