"""vLLM: no static placement, only settings of the balancer that runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import InputError, Problem
from moesim.placement.engine_files import About, EngineFile, formats
from moesim.placement.placed import Placement
from moesim.placement.store import StoredPlacement

WINDOW, INTERVAL = 1000, 3000
"""vLLM 0.33's own defaults: iterations that the balancer looks at, and between two balancings."""


@formats.register("vllm")
@dataclass(frozen=True)
class Vllm:
    """Nearest ``--eplb-config`` of stock vLLM, which loads no placement: it balances while it runs."""

    def write(self, stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
        """Number of redundant experts, and what stock strategy gives this placement, if one does."""
        placed = stored.placement
        redundant = max(placed.num_slots - placed.num_experts, 0)
        config = {"num_redundant_experts": redundant, "window_size": WINDOW, "step_interval": INTERVAL}
        notes = [
            "stock vLLM has no static placement input; this is the nearest balancer setting, "
            "to be used with --enable-eplb --eplb-config",
        ]
        strategy = _stock_strategy(placed)
        if strategy is not None:
            notes.append(f"without balancing, --expert-placement-strategy {strategy} is this very placement")
        return EngineFile((json.dumps(config) + "\n").encode(), tuple(notes))

    def read(self, path: Path, about: About) -> StoredPlacement:
        """There is nothing to read: the file holds settings."""
        message = "vLLM's --eplb-config holds no placement; accepted: files of the other formats"
        raise InputError([Problem("format", message, path.name)])


def _stock_strategy(placed: Placement) -> str | None:
    """Strategy of vLLM that gives this placement without redundant experts, if one does."""
    if placed.num_slots != placed.num_experts or placed.split is not None:
        return None
    row = np.arange(placed.num_experts)
    dealt = row.reshape(placed.slots_per_rank, placed.num_ranks).T.ravel()
    for name, wanted in (("linear", row), ("round_robin", dealt)):
        if (placed.physical_to_logical == wanted).all():
            return name
    return None
