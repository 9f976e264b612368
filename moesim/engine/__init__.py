"""Programs, interpreters and spans; knows ranks, streams and durations, and nothing of what they are for.

Import the interpreters by module: ``from moesim.engine import vector`` (numpy), ``from moesim.engine import
events`` (simpy).
"""

from moesim.engine.durations import Durations, durations_ps, part_ps, to_ps, to_seconds
from moesim.engine.program import (
    Demand,
    Instruction,
    Meet,
    Part,
    Program,
    Receive,
    Resource,
    Run,
    Send,
    Wait,
    concatenated,
    demand_of,
    participants,
    parts_of,
)
from moesim.engine.spans import Recorded, Spans, busy_ps, overlapping, spans_of

__all__ = [
    "Demand",
    "Durations",
    "Instruction",
    "Meet",
    "Part",
    "Program",
    "Receive",
    "Recorded",
    "Resource",
    "Run",
    "Send",
    "Spans",
    "Wait",
    "busy_ps",
    "concatenated",
    "demand_of",
    "durations_ps",
    "overlapping",
    "part_ps",
    "participants",
    "parts_of",
    "spans_of",
    "to_ps",
    "to_seconds",
]
