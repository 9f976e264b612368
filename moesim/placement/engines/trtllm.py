"""TensorRT-LLM: ``moe_config.load_balancer``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import InputError, Problem
from moesim.files import read_tree
from moesim.placement.engine_files import (
    About,
    EngineFile,
    equal_rows,
    formats,
    is_integer_table,
    placed_rows,
)
from moesim.placement.store import StoredPlacement, rectangle

SLOTS, LAYERS, UPDATES = "num_slots", "initial_global_assignments", "layer_updates_per_iter"


@formats.register("trtllm")
@dataclass(frozen=True)
class TensorRtLlm:
    """YAML for TensorRT-LLM's load balancer: placed layers by their model number, static."""

    def write(self, stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
        """Needs equal slots."""
        rows = equal_rows(stored, "TensorRT-LLM").tolist()
        lines = [f"{SLOTS}: {stored.placement.num_slots}", f"{LAYERS}:"]
        lines += [f"  {n}: {json.dumps(row)}" for n, row in zip(stored.layer_indices, rows, strict=True)]
        lines.append(f"{UPDATES}: 0")
        return EngineFile(("\n".join(lines) + "\n").encode())

    def read(self, path: Path, about: About) -> StoredPlacement:
        """Exactly the layers with experts."""
        tree = read_tree(path)
        data = tree.data
        known = isinstance(data, dict) and set(data) <= {SLOTS, LAYERS, UPDATES}
        layers = data.get(LAYERS) if known else None
        if not isinstance(layers, dict) or not is_integer_table(list(layers.values())):
            message = f"accepted: a mapping of layer numbers to rows of whole numbers, beside {SLOTS}"
            raise InputError([Problem(LAYERS, message, tree.where((LAYERS,)))])
        wanted = list(about.layer_indices)
        found = {str(number): row for number, row in layers.items()}
        if sorted(found) != sorted(map(str, wanted)):
            message = f"got layers {', '.join(found)}; accepted: {', '.join(map(str, wanted))}"
            raise InputError([Problem(LAYERS, message, tree.where((LAYERS,)))])
        rows = rectangle([found[str(number)] for number in wanted], LAYERS, path)
        if data.get(SLOTS) != rows.shape[1]:
            message = f"got {data.get(SLOTS)}; accepted: {rows.shape[1]}, the length of the rows"
            raise InputError([Problem(SLOTS, message, tree.where((SLOTS,)))])
        return placed_rows(rows, about, path, "TensorRT-LLM file")
