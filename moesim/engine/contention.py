"""Elastic work in simulated time: transfers that share links, slowed while others are on them.

A transfer has the duration that it would take alone. While it runs it uses its links at its full rate or, if
they are crowded, at the max-min fair rate of all transfers on them; it is through when the full-speed time
that it has made up equals its duration. A collective is one transfer on the links of all its members, at the
pace of the most crowded; its members may leave at different points of it. Rates change only when a transfer
joins or leaves; all that happens at one instant is settled in one solve, and equal transfers are one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event

from moesim.engine.settled import Settled
from moesim.engine.sharing import FULL, Paths, max_min_rates
from moesim.units import PS_PER_S

SLOWED = 10 * FULL
"""Relative loss of rate from which a transfer counts as held back."""

THROUGH_PS = 0.5
"""Full-speed time left below which a transfer is through: half the engine's tick."""


@dataclass(frozen=True, slots=True)
class Use:
    """Links of a transfer.

    Attributes
    ----------
    links : tuple of int
        What it crosses.
    rates : tuple of float
        What it uses of each at full speed, above 0.
    """

    links: tuple[int, ...]
    rates: tuple[float, ...]

    @classmethod
    def of(cls, links: NDArray[np.int64], rate: NDArray[np.float64]) -> Use:
        """Sum over members: ``links[member, ...]`` with -1 for none, ``rate[member]`` or of each of them."""
        member, column = np.nonzero(links >= 0)
        # a link that one member names twice is crossed once
        pairs, first = np.unique(np.stack([member, links[member, column]]), axis=1, return_index=True)
        rates = rate[pairs[0]] if rate.ndim == 1 else rate[member[first], column[first]]
        own, place = np.unique(pairs[1], return_inverse=True)
        total = np.bincount(place, rates, minlength=len(own))
        return cls(tuple(own.tolist()), tuple(total.tolist()))


@dataclass(slots=True, eq=False)
class _Flow:
    use: Use
    ends: list[tuple[float, Event]]
    is_background: bool
    made_ps: float = 0.0
    speed: float = 0.0
    held_by: int = -1


@dataclass(frozen=True, slots=True, eq=False)
class LinkUse:
    """What became of the links of one pool; all arrays ``(link,)``.

    Attributes
    ----------
    capacity : ndarray
        The array that the demands held.
    carried, carried_beside : ndarray
        Moved by the program's transfers and by those of its background, in the unit of rate times second.
    lost_s : ndarray
        Time that the program's transfers lost because this link was full, summed over them. [s]
    """

    capacity: NDArray[np.float64]
    carried: NDArray[np.float64]
    carried_beside: NDArray[np.float64]
    lost_s: NDArray[np.float64]


@dataclass(eq=False)
class Contention:
    """Links of one pool and the transfers on them.

    Attributes
    ----------
    env : Environment
        Simulated time, in integer picoseconds.
    capacity : ndarray, ``(link,)``
        Of each link, in the unit of the rates; above 0.
    """

    env: Environment
    capacity: NDArray[np.float64]
    _flows: list[_Flow] = field(default_factory=list)
    _carried: dict[bool, NDArray[np.float64]] = field(default_factory=dict)
    _lost_ps: dict[int, float] = field(default_factory=dict)
    _since: int = 0
    _round: int = 0
    _is_due: bool = False

    def start(self, use: Use, durations_ps: Sequence[int], *, is_background: bool = False) -> list[Event]:
        """Events that fire when as much full-speed time of the transfer has been made up as each asks for."""
        ends = [(float(duration), Event(self.env)) for duration in durations_ps]
        self._advance()
        self._flows.append(_Flow(use, sorted(ends, key=lambda end: end[0]), is_background))
        self._solve_later()
        return [event for _, event in ends]

    def _advance(self) -> None:
        """Credit everybody with the time since the last change."""
        now = int(self.env.now)
        for flow in self._flows if now > self._since else ():
            flow.made_ps += flow.speed * (now - self._since)
            if flow.held_by >= 0:
                lost_ps = (1 - flow.speed) * (now - self._since)
                self._lost_ps[flow.held_by] = self._lost_ps.get(flow.held_by, 0.0) + lost_ps
        self._since = now

    def use_so_far(self) -> LinkUse:
        """What the links have carried, and held back, until now."""
        self._advance()
        total = {side: self._carried.get(side, np.zeros(len(self.capacity))).copy() for side in (False, True)}
        for flow in self._flows:
            _add(total[flow.is_background], flow)
        lost_s = np.zeros(len(self.capacity))
        lost_s[list(self._lost_ps)] = np.array(list(self._lost_ps.values())) / PS_PER_S
        return LinkUse(self.capacity, total[False], total[True], lost_s)

    def _solve_later(self) -> None:
        if not self._is_due:
            self._is_due = True
            Settled(self.env).callbacks.append(lambda _: self._solve())

    def _solve(self) -> None:
        self._is_due = False
        self._advance()
        left = False
        for flow in self._flows:
            while flow.ends and flow.ends[0][0] - flow.made_ps <= THROUGH_PS:
                flow.ends.pop(0)[1].succeed()
            if not flow.ends:
                left = True
                _add(self._carried.setdefault(flow.is_background, np.zeros(len(self.capacity))), flow)
        self._flows = [flow for flow in self._flows if flow.ends]
        if left:
            # what the finished ones set off at this instant joins before the next solve
            self._solve_later()
        elif self._flows:
            self._share()

    def _share(self) -> None:
        """New speeds, and the next end among them."""
        kinds: dict[Use, list[_Flow]] = {}
        for flow in self._flows:
            kinds.setdefault(flow.use, []).append(flow)
        limit = np.array([max(use.rates) for use in kinds])
        paths = Paths.of([use.links for use in kinds])
        shares = np.array([rate for use in kinds for rate in use.rates]) / limit[paths.flow]
        weight = np.array([float(len(group)) for group in kinds.values()])
        paths = Paths(paths.flow, paths.link, shares, paths.num_flows)
        rates = max_min_rates(paths, self.capacity, limit=limit, weight=weight)
        held = self._held_by(paths, rates, limit, weight)
        for speed, link, group in zip(rates / limit, held, kinds.values(), strict=True):
            for flow in group:
                flow.speed = float(speed)
                flow.held_by = -1 if flow.is_background else link
        self._round += 1
        wait_ps = min((flow.ends[0][0] - flow.made_ps) / flow.speed for flow in self._flows)
        current = self._round
        timeout = self.env.timeout(max(ceil(wait_ps), 1))
        timeout.callbacks.append(lambda _: self._solve_later() if current == self._round else None)

    def _held_by(
        self,
        paths: Paths,
        rates: NDArray[np.float64],
        limit: NDArray[np.float64],
        weight: NDArray[np.float64],
    ) -> list[int]:
        """The fullest link of each flow that does not get its full rate; -1 of the others."""
        full = paths.used(rates, len(self.capacity), weight) / self.capacity
        held = [-1] * paths.num_flows
        for flow in np.flatnonzero(rates < limit * (1 - SLOWED)).tolist():
            own = paths.link[paths.flow == flow]
            held[flow] = int(own[np.argmax(full[own])])
        return held


def _add(total: NDArray[np.float64], flow: _Flow) -> None:
    total[list(flow.use.links)] += np.array(flow.use.rates) * (flow.made_ps / PS_PER_S)
