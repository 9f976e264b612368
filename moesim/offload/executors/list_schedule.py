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
        order = np.lexsort((-work.tokens, ~work.present))
        fates = np.zeros(order.size, np.int8)
        device, cpu, pim, link = work.now_s, max(work.now_s, work.cpu_free_s), work.now_s, work.link_free_s
        head, tail = 0, order.size - 1
        from_tail: list[int] = []
        while head <= tail:
            first, last = order[head], order[tail]
            if work.present[first]:
                arrived = float(work.ready_s[first])
            else:
                arrived = max(link, work.now_s) + float(work.copy_s[first])
            on_device = max(device, arrived) + float(work.device_s[first])
            on_cpu = cpu + float(work.cpu_s[last]) if self.cpu else np.inf
            on_pim = pim + float(work.pim_s[last])
            if on_device <= min(on_cpu, on_pim):
                fates[first] = RESIDENT if work.present[first] else LOAD
                link = link if work.present[first] else arrived
                device = on_device
                head += 1
                continue
            if on_cpu <= on_pim:
                fates[last], cpu = ON_CPU, on_cpu
            else:
                fates[last], pim = ON_PIM, on_pim
            from_tail.append(int(last))
            tail -= 1
        return Assignment(fates, np.concatenate((order[:head], np.array(from_tail, np.int64))))
