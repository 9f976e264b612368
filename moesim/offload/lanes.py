"""In-order streams of one machine with clocks, and the program they write while they are recorded.

A lane is a stream of the engine: a device queue, one DMA engine a direction, a disk, the CPU. The
driver decides by these clocks; the program it leaves behind has the same clocks in the event
interpreter, to the picosecond.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from moesim.engine.program import Instruction, Part, Program, Run, Wait
from moesim.evidence import Estimate
from moesim.offload.costs import parts_ps
from moesim.units import PS_PER_S

LANES = ("device", "pim", "host to device", "disk to host", "cpu", "cxl")
DEVICE, PIM, LINK, DISK, CPU, CXL = LANES
_EVENTS = 256
"""Event streams in turn; more than ever wait at once."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment on a lane: its time [ps], and the event stream that stands for it while recording."""

    time_ps: int
    event: str | None = None


@dataclass(slots=True)
class Lanes:
    """Clocks [ps] and busy times [ps] of all lanes."""

    clock: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    busy: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))
    recording: bool = False
    started_ps: int = 0
    instructions: list[Instruction] = field(default_factory=list)
    num_events: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LANES, 0))

    def start_recording(self) -> None:
        """All lanes meet, and everything from here on is written down."""
        now = max(self.clock.values())
        self.clock = dict.fromkeys(LANES, now)
        self.recording, self.started_ps = True, now

    def run(self, lane: str, parts: Sequence[Part], layer: int | None, length_ps: int | None = None) -> None:
        """Work at the end of a lane; ``length_ps`` is that of ``parts`` where it is known already."""
        length = parts_ps(parts) if length_ps is None else length_ps
        self.clock[lane] += length
        self.busy[lane] += length
        if self.recording:
            self.instructions.append(Run(lane, tuple(parts), layer))

    def work(
        self, lane: str, name: str, kind: str, evidence: Estimate, seconds: float, layer: int | None
    ) -> None:
        """A single operation of ``seconds`` at the end of a lane, with the grade of ``evidence``."""
        length = round(seconds * PS_PER_S)
        self.clock[lane] += length
        self.busy[lane] += length
        if self.recording:
            estimate = Estimate(seconds, evidence.family, evidence.grade, evidence.sigma)
            self.instructions.append(Run(lane, one(name, kind, estimate), layer))

    def wait(self, lane: str, mark: Mark) -> None:
        """Later work of ``lane`` starts no earlier than ``mark``."""
        self.clock[lane] = max(self.clock[lane], mark.time_ps)
        if self.recording and mark.event is not None:
            self.instructions.append(Wait(lane, mark.event))

    def run_together(self, lanes: Sequence[str], parts: Sequence[Part], layer: int | None) -> None:
        """The same work on several lanes at once, from when all of them are free."""
        marks = [self.mark(lane) for lane in lanes]
        for lane in lanes:
            for mark in marks:
                self.wait(lane, mark)
        for lane in lanes:
            self.run(lane, parts, layer)

    def mark(self, lane: str) -> Mark:
        """The end of what ``lane`` has been given so far."""
        if not self.recording:
            return Mark(self.clock[lane])
        # turns are taken lane by lane: a lane's marks never run backwards, so a stream may serve again
        event = f"{lane}, event {self.num_events[lane] % _EVENTS}"
        self.num_events[lane] += 1
        self.instructions.append(Wait(event, lane))
        return Mark(self.clock[lane], event)

    def program(self) -> Program:
        """What was recorded."""
        streams = dict.fromkeys((*LANES, *(i.stream for i in self.instructions)))
        return Program(1, tuple(streams), tuple(self.instructions))


def one(name: str, kind: str, estimate: Estimate) -> tuple[Part, ...]:
    """A single operation."""
    return (Part(name, kind, estimate),)
