"""Max-min fair rates: how concurrent flows share links of given capacities.

A flow takes the same rate on every link of its path (or a fixed share of it where it is split over several
paths) and at most its own limit. Rates are max-min fair: none can be raised without lowering a smaller one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FULL = 1e-10
"""Relative room below which a link is full: rounding leaves a little."""


@dataclass(frozen=True, slots=True, eq=False)
class Paths:
    """Links of many flows, as pairs in order of the flow.

    Attributes
    ----------
    flow, link : ndarray of int, ``(pair,)``
        That flow uses that link.
    share : ndarray, ``(pair,)``
        Fraction of the flow's rate on the link; 1 on a single path.
    num_flows : int
        Flows, also those that use no link.
    """

    flow: Ints
    link: Ints
    share: Floats
    num_flows: int

    @classmethod
    def of(cls, links: list[tuple[int, ...]]) -> Paths:
        """Paths from the links of each flow."""
        counts = [len(own) for own in links]
        return cls(
            np.repeat(np.arange(len(links)), counts),
            np.array([link for own in links for link in own], dtype=np.int64),
            np.ones(sum(counts)),
            len(links),
        )

    def used(self, rates: Floats, num_links: int, weight: Floats | None = None) -> Floats:
        """Sum of rates on each link, ``(link,)``; ``weight`` equal flows stand behind each row."""
        rate = rates if weight is None else rates * weight
        return np.asarray(
            np.bincount(self.link, rate[self.flow] * self.share, minlength=num_links), dtype=np.float64
        )


def max_min_rates(
    paths: Paths, capacity: Floats, *, limit: Floats | None = None, weight: Floats | None = None
) -> Floats:
    """Max-min fair rate of each flow, ``(flow,)``, by progressive filling.

    Parameters
    ----------
    paths : Paths
        Links of each flow.
    capacity : ndarray, ``(link,)``
        Of each link; 0 stops what crosses it.
    limit : ndarray, ``(flow,)``, optional
        Most that a flow can use; without one a flow that uses no link has an infinite rate.
    weight : ndarray, ``(flow,)``, optional
        Equal flows that a row stands for; the rate is that of one of them. This keeps symmetric traffic
        cheap: a row a class.

    Notes
    -----
    All rates rise together; a flow stops when one of its links is full or its limit is reached. Each round
    fills a link or stops a flow, so there are at most as many rounds as links and limits.
    """
    count = np.ones(paths.num_flows) if weight is None else weight
    most = np.full(paths.num_flows, np.inf) if limit is None else np.asarray(limit, dtype=np.float64)
    rates = np.zeros(paths.num_flows)
    active = np.ones(paths.num_flows, dtype=bool)
    room = np.asarray(capacity, dtype=np.float64).copy()
    flow, link, load = paths.flow, paths.link, paths.share * count[paths.flow]
    level = 0.0
    while active.any():
        pull = np.bincount(link, load, minlength=len(room))
        with np.errstate(divide="ignore", invalid="ignore"):
            rise = np.where(pull > 0, room / pull, np.inf)
        step = min(float(rise.min(initial=np.inf)), float((most[active] - level).min()))
        if not np.isfinite(step):
            rates[active] = np.inf
            break
        step = max(step, 0.0)
        level += step
        rates[active] = level
        room = np.maximum(room - pull * step, 0.0)
        full = (pull > 0) & (room <= FULL * np.asarray(capacity))
        full[int(np.argmin(rise))] |= bool(rise.min(initial=np.inf) <= step)
        stopped = np.zeros(paths.num_flows, dtype=bool)
        stopped[flow[full[link]]] = True
        stopped |= active & (most <= level * (1 + FULL))
        active &= ~stopped
        keep = active[flow]
        flow, link, load = flow[keep], link[keep], load[keep]
    return rates


def finish_times_s(paths: Paths, capacity: Floats, amount: Floats, *, together: float = 0.0) -> Floats:
    """When each of the flows that start at once is through, ``(flow,)``, rates shared max-min fairly. [s]

    Parameters
    ----------
    paths, capacity
        As in :func:`max_min_rates`; all capacities above 0.
    amount : ndarray, ``(flow,)``
        What each has to move. [bytes]
    together : float, default 0
        Flows that are within this fraction of finishing when the next one finishes are ended with it:
        fewer rounds, later by at most this much of the time.
    """
    left, finish = np.asarray(amount, dtype=np.float64).copy(), np.zeros(paths.num_flows)
    running, now = left > 0, 0.0
    while running.any():
        place = np.cumsum(running) - 1
        keep = running[paths.flow]
        some = Paths(place[paths.flow[keep]], paths.link[keep], paths.share[keep], int(running.sum()))
        rates = max_min_rates(some, capacity)
        needed = left[running] / rates
        first = float(needed.min())
        done = needed <= first * (1 + together) + FULL * first
        step = float(needed[done].max())
        now += step
        rest = np.maximum(left[running] - rates * step, 0.0)
        rest[done] = 0.0
        left[running] = rest
        ended = np.flatnonzero(running)[done]
        finish[ended] = now
        running[ended] = False
        running &= left > 0
    return finish
