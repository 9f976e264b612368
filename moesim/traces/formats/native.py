"""moesim's own trace file, so that ``convert`` goes from and to it like any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moesim.errors import InputError
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints
from moesim.traces.routing import ExpertCounts, RoutingTrace
from moesim.traces.store import read_counts, read_trace, write_counts, write_trace


@formats.register("moesim")
@dataclass(frozen=True)
class Native:
    """``.safetensors`` with a ``moesim_trace`` description: routing, or counts."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace | ExpertCounts:
        """What the file holds; hints are not needed."""
        try:
            return read_trace(path)
        except InputError as error:
            if any(problem.field == "kind" for problem in error.problems):
                return read_counts(path)
            raise

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write everything the trace knows."""
        if isinstance(trace, RoutingTrace):
            return [write_trace(path, trace)]
        return [write_counts(path, trace)]
