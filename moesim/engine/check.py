"""What may be wrong with a program: one small function a rule, all problems at once."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from moesim.engine.links import match_messages
from moesim.engine.program import (
    Demand,
    Instruction,
    Meet,
    Part,
    Program,
    Receive,
    Run,
    Send,
    Wait,
    demand_of,
    participants,
    parts_of,
)
from moesim.errors import did_you_mean


def problems_of(program: Program) -> list[str]:
    """Every problem of a program in program order, empty when it is valid.

    Streams must be known and distinct; arrays over ranks have the shape ``(num_ranks,)`` and the right type;
    seconds and sigma are finite and not negative; a group has at least two members; nobody sends to
    itself; every message that is received was sent before, and every message sent is received.
    """
    found = list(_shape_problems(program))
    # microbatches share instructions, and layers groups and masks: each is looked at once
    sound: set[object] = set()
    for index, instruction in enumerate(program.instructions):
        if id(instruction) in sound:
            continue
        wrong = list(_instruction_problems(program, instruction))
        arrays = (type(instruction), *(id(value) for _, value, _ in _rank_arrays(instruction)))
        if arrays not in sound:
            of_arrays = list(_array_problems(program.num_ranks, instruction))
            of_arrays = of_arrays or list(_member_problems(program.num_ranks, instruction))
            if not of_arrays:
                sound.add(arrays)
            wrong += of_arrays
        if not wrong:
            sound.add(id(instruction))
        found += [f"instruction {index} ({type(instruction).__name__}): {text}" for text in wrong]
    return found or list(_message_problems(program))


def _shape_problems(program: Program) -> Iterator[str]:
    if program.num_ranks < 1:
        yield f"num_ranks: got {program.num_ranks}; accepted: an integer >= 1"
    if not program.streams or len(set(program.streams)) != len(program.streams):
        yield f"streams: got {program.streams}; accepted: one or more distinct names"
    for name in program.background:
        yield from _stream_problems(program, "background", name)


def _instruction_problems(program: Program, instruction: Instruction) -> Iterator[str]:
    yield from _stream_problems(program, "stream", instruction.stream)
    if instruction.stream in program.background and not isinstance(instruction, Run):
        yield f"stream: {instruction.stream!r} is background; accepted there: Run"
    for part in parts_of(instruction):
        yield from _part_problems(program.num_ranks, part)
    demand = demand_of(instruction)
    if demand is not None:
        yield from _demand_problems(program.num_ranks, demand)
    if isinstance(instruction, Wait):
        yield from _stream_problems(program, "on", instruction.on)
        if instruction.on == instruction.stream:
            yield f"on: {instruction.on!r} waits for itself"
        if instruction.on in program.background:
            yield f"on: {instruction.on!r} is background, which has no end; accepted: another stream"


def _stream_problems(program: Program, field: str, name: str) -> Iterator[str]:
    if name not in program.streams:
        hint = did_you_mean(name, program.streams)
        yield f"{field}: unknown stream {name!r}{hint}; accepted: {program.streams}"


def _part_problems(num_ranks: int, part: Part) -> Iterator[str]:
    seconds, sigma = np.asarray(part.estimate.seconds), part.estimate.sigma
    if seconds.shape not in {(), (num_ranks,)}:
        yield f"part {part.name!r}: seconds have shape {seconds.shape}; accepted: () or ({num_ranks},)"
    elif seconds.dtype.kind not in "fiu" or not (seconds.min() >= 0 and seconds.max() < np.inf):
        yield f"part {part.name!r}: got seconds {part.estimate.seconds}; accepted: finite numbers >= 0"
    if not (math.isfinite(sigma) and sigma >= 0):
        yield f"part {part.name!r}: got sigma {sigma}; accepted: a finite number >= 0"


def _demand_problems(num_ranks: int, demand: Demand) -> Iterator[str]:
    shapes = {(num_ranks,), demand.links.shape}
    if demand.links.ndim != 2 or len(demand.links) != num_ranks or demand.rate.shape not in shapes:
        given = f"links {demand.links.shape} and rate {demand.rate.shape}"
        yield f"demand: {given}; accepted: ({num_ranks}, most) and ({num_ranks},) or ({num_ranks}, most)"
        return
    if not (demand.capacity > 0).all():
        yield "demand: a link without capacity; accepted: above 0 (a dead link carries nothing: reroute)"
    if (demand.links >= len(demand.capacity)).any() or (demand.links < -1).any():
        most = len(demand.capacity) - 1
        yield f"demand: links {demand.links.min()} to {demand.links.max()}; accepted: -1 to {most}"
    rate = demand.rate if demand.rate.ndim > 1 else demand.rate[:, None]
    if not (np.broadcast_to(rate, demand.links.shape)[demand.links >= 0] > 0).all():
        yield "demand: a rate of 0 on some link; accepted: above 0"


def _array_problems(num_ranks: int, instruction: Instruction) -> Iterator[str]:
    for field, value, kinds in _rank_arrays(instruction):
        array = value if isinstance(value, np.ndarray) else None
        if array is None or array.shape != (num_ranks,) or array.dtype.kind not in kinds:
            found = type(value).__name__ if array is None else f"{array.dtype} array {array.shape}"
            kind = "bool" if kinds == "b" else "integer"
            yield f"{field}: got {found}; accepted: {kind} array ({num_ranks},)"


def _rank_arrays(instruction: Instruction) -> Iterator[tuple[str, object, str]]:
    if isinstance(instruction, Meet):
        yield "group", instruction.group, "iu"
    elif isinstance(instruction, Send):
        yield "to", instruction.to, "iu"
    elif isinstance(instruction, Receive):
        yield "sender", instruction.sender, "iu"
    elif instruction.ranks is not None:
        yield "ranks", instruction.ranks, "b"
    if isinstance(instruction, Run) and instruction.resource is not None:
        yield "resource.index", instruction.resource.index, "iu"


def _member_problems(num_ranks: int, instruction: Instruction) -> Iterator[str]:
    if not participants(instruction, num_ranks).any():
        yield "no rank takes part"
    if isinstance(instruction, Meet):
        labels, counts = np.unique(instruction.group[instruction.group >= 0], return_counts=True)
        if (counts == 1).any():
            yield f"group: {labels[counts == 1].tolist()} have one member; accepted: two or more"
    for field, value, kinds in _rank_arrays(instruction):
        if kinds == "iu" and isinstance(value, np.ndarray) and (value < -1).any():
            yield f"{field}: got {int(value.min())}; accepted: >= -1"
    if isinstance(instruction, Send | Receive):
        field = "to" if isinstance(instruction, Send) else "sender"
        peer = instruction.to if isinstance(instruction, Send) else instruction.sender
        if (peer >= num_ranks).any():
            yield f"{field}: got rank {int(peer.max())}; accepted: below {num_ranks}"
        if (peer == np.arange(num_ranks)).any():
            yield f"{field}: rank {int(np.flatnonzero(peer == np.arange(num_ranks))[0])} names itself"


def _message_problems(program: Program) -> Iterator[str]:
    messages = match_messages(program)
    for index, rank in messages.unsent:
        yield f"instruction {index} (Receive): no Send precedes it for rank {rank}"
    for index, rank in messages.unread:
        yield f"instruction {index} (Send): nobody receives the message of rank {rank}"
