"""Our own format, which keeps everything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moesim.placement.engine_files import About, EngineFile, formats
from moesim.placement.store import StoredPlacement, read_placement, to_text


@formats.register("moesim")
@dataclass(frozen=True)
class Moesim:
    """JSON with slots, shares, model, layer numbers, method and source."""

    def write(self, stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
        """Same placement, same bytes."""
        return EngineFile(to_text(stored).encode())

    def read(self, path: Path, about: About) -> StoredPlacement:
        """What :meth:`write` wrote."""
        return read_placement(path)
