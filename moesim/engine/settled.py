"""The end of an instant of simulated time."""

from __future__ import annotations

from simpy import Environment, Event
from simpy.events import EventPriority

LATE = EventPriority(2)
"""After the urgent (0) and normal (1) events of simpy."""


class Settled(Event):
    """Fires after every ordinary event of the same instant."""

    def __init__(self, env: Environment) -> None:
        super().__init__(env)
        self._ok, self._value = True, None
        env.schedule(self, priority=LATE)
