"""Elastic work in simulated time: transfers that share links, slowed while others are on them.

A transfer has the duration that it would take alone. While it runs it uses its links at its full rate or, if
they are crowded, at the max-min fair rate of all transfers on them; it is through when the full-speed time
that it has made up equals its duration. Rates change only when a transfer joins or leaves; all that happens
at one instant is settled in one solve, and equal transfers are one row of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil

import numpy as np
from numpy.typing import NDArray
from simpy import Environment, Event

from moesim.engine.settled import Settled
from moesim.engine.sharing import Paths, max_min_rates

THROUGH_PS = 0.5
"""Full-speed time left below which a transfer is through: half the engine's tick."""


@dataclass(slots=True, eq=False)
class _Flow:
    links: tuple[int, ...]
    rate: float
    left_ps: float
    done: Event
    speed: float = 0.0


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
    _since: int = 0
    _round: int = 0
    _is_due: bool = False

    def start(self, links: tuple[int, ...], rate: float, duration_ps: int) -> Event:
        """Event that fires when work of ``duration_ps`` alone, using ``rate`` of each link, is through."""
        done = Event(self.env)
        self._advance()
        self._flows.append(_Flow(links, rate, float(duration_ps), done))
        self._solve_later()
        return done

    def _advance(self) -> None:
        """Credit everybody with the time since the last change."""
        now = int(self.env.now)
        for flow in self._flows if now > self._since else ():
            flow.left_ps -= flow.speed * (now - self._since)
        self._since = now

    def _solve_later(self) -> None:
        if not self._is_due:
            self._is_due = True
            Settled(self.env).callbacks.append(lambda _: self._solve())

    def _solve(self) -> None:
        self._is_due = False
        self._advance()
        through = [flow for flow in self._flows if flow.left_ps <= THROUGH_PS]
        if through:
            self._flows = [flow for flow in self._flows if flow.left_ps > THROUGH_PS]
            for flow in through:
                flow.done.succeed()
            # what the finished ones set off at this instant joins before the next solve
            self._solve_later()
            return
        if not self._flows:
            return
        kinds: dict[tuple[tuple[int, ...], float], list[_Flow]] = {}
        for flow in self._flows:
            kinds.setdefault((flow.links, flow.rate), []).append(flow)
        limit = np.array([rate for _, rate in kinds])
        rates = max_min_rates(
            Paths.of([links for links, _ in kinds]),
            self.capacity,
            limit=limit,
            weight=np.array([float(len(group)) for group in kinds.values()]),
        )
        for speed, group in zip(rates / limit, kinds.values(), strict=True):
            for flow in group:
                flow.speed = float(speed)
        self._round += 1
        wait_ps = max(ceil(min(flow.left_ps / flow.speed for flow in self._flows)), 1)
        current = self._round
        timeout = self.env.timeout(wait_ps)
        timeout.callbacks.append(lambda _: self._solve_later() if current == self._round else None)
