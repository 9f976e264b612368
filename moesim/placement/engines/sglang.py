"""SGLang: ``--init-expert-location``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import InputError, Problem
from moesim.placement.engine_files import (
    About,
    EngineFile,
    equal_rows,
    formats,
    is_integer_table,
    placed_rows,
)
from moesim.placement.placed import Ints
from moesim.placement.store import StoredPlacement, read_json, rectangle, rows_text

KEY = "physical_to_logical_map"


@formats.register("sglang")
@dataclass(frozen=True)
class Sglang:
    """JSON for SGLang's ``--init-expert-location``: a row for every layer of the model.

    Rows of dense layers are not used but must be there; they, and layers that were not placed, hold
    the experts in order. No other key is allowed beside the map.
    """

    def write(self, stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
        """Needs equal slots."""
        placed = stored.placement
        rows = np.tile(np.arange(placed.num_slots) % placed.num_experts, (num_hidden_layers, 1))
        rows[list(stored.layer_indices)] = equal_rows(stored, "SGLang")
        redundant = placed.num_slots - placed.num_experts
        notes = [f"start SGLang with --ep-size {placed.num_ranks} --ep-num-redundant-experts {redundant}"]
        filled = num_hidden_layers - placed.num_layers
        if filled:
            notes.append(
                f"{filled} of {num_hidden_layers} rows (dense or not placed) hold the experts in order"
            )
        return EngineFile(f'{{"{KEY}": {rows_text(rows)}}}\n'.encode(), tuple(notes))

    def read(self, path: Path, about: About) -> StoredPlacement:
        """Rows of the layers with experts; the others are fillers."""
        data = read_json(path)
        if isinstance(data, dict) and "logical_count" in data:
            message = "holds counts, not a placement: SGLang balances these itself when it starts"
            raise InputError([Problem("logical_count", message, path.name)])
        if not isinstance(data, dict) or list(data) != [KEY] or not is_integer_table(data[KEY]):
            message = f"accepted: a JSON object whose only key is {KEY!r}, a list of rows of whole numbers"
            raise InputError([Problem(KEY, message, path.name)])
        rows: Ints = rectangle(data[KEY], KEY, path)
        layers = about.layer_indices
        if not layers or max(layers) >= len(rows) or min(layers) < 0:
            message = f"got layers {list(layers)}; accepted: 0 to {len(rows) - 1}, the rows of the file"
            raise InputError([Problem("layer_indices", message, path.name)])
        return placed_rows(rows[list(layers)], about, path, "SGLang file")
