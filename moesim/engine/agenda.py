"""Calls at instants on the event clock, for rooms whose work is decided by state and not by a program.

An instant has phases: everything of an earlier phase happens before anything of a later one, whenever it was
asked for. So what a phase decides may depend on all that earlier phases did at the same picosecond, and not
on who was asked first. Within a phase calls happen in the order they were asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from simpy import Environment, Event
from simpy.events import EventPriority


class _Call(Event):
    """An event that has happened as soon as it is due: no process waits for it."""

    __slots__ = ()

    def __init__(self, env: Environment, call: Callable[[Any], None], value: object) -> None:
        self.env = env
        self.callbacks = [call]
        self._ok, self._value = True, value
        self._defused = False


class Agenda:
    """Calls in order of time, then phase, then asking.

    Attributes
    ----------
    num_events : int
        Calls asked for so far: what a clock costs is proportional to it.
    """

    def __init__(self) -> None:
        self._env = Environment()
        self.num_events = 0

    @property
    def now_ps(self) -> int:
        """Current time. [ps]"""
        return self._env.now  # type: ignore[return-value]  # integers go in, so integers come out

    def call(
        self, call: Callable[[Any], None], *, delay_ps: int = 0, phase: int = 0, value: object = None
    ) -> None:
        """Have ``call(event)`` made after ``delay_ps``; ``event.value`` is ``value``.

        Raises
        ------
        ValueError
            Of a negative delay.
        """
        if delay_ps < 0:
            message = f"an agenda knows no past: delay of {delay_ps} ps"
            raise ValueError(message)
        self.num_events += 1
        self._env.schedule(_Call(self._env, call, value), priority=EventPriority(1 + phase), delay=delay_ps)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing further is due at this instant: a later phase may begin without being asked for."""
        return self._env.peek() > self._env.now

    def run(self) -> None:
        """Until nothing is left to happen."""
        self._env.run()
