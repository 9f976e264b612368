"""Files that other programs write: each format is one registered module of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol, runtime_checkable

from moesim.registry import Registry
from moesim.traces.interchange import Hints
from moesim.traces.routing import ExpertCounts, RoutingTrace


class Format(Protocol):
    """Reads what one program writes; hostile and broken files raise InputError, nothing else."""

    def read(self, path: Path, hints: Hints) -> RoutingTrace | ExpertCounts:
        """Trace of a file or folder."""
        ...


@runtime_checkable
class Writable(Protocol):
    """A format that can also be written."""

    def write(self, path: Path, trace: RoutingTrace | ExpertCounts) -> list[Path]:
        """Write a trace; the files made. What the format cannot say is lost, and documented."""
        ...


formats: Registry[Format] = Registry("trace_format", "moesim.traces.formats")
"""Registered formats by name."""
