"""vLLM-Ascend: ``expert_map_path``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, Problem
from moesim.placement.engine_files import About, EngineFile, formats, is_integer_table, placed_rows
from moesim.placement.placed import EMPTY
from moesim.placement.store import StoredPlacement, read_json


@formats.register("vllm-ascend")
@dataclass(frozen=True)
class VllmAscend:
    """JSON for vLLM-Ascend's ``expert_map_path``: layers with experts only, counted from 0."""

    def write(self, stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
        """Devices list what they hold; they may hold different numbers of experts."""
        placed = stored.placement
        grid = placed.physical_to_logical.reshape(placed.num_layers, placed.num_ranks, -1).tolist()
        layers = [
            {
                "layer_id": number,
                "device_count": placed.num_ranks,
                "device_list": [
                    {"device_id": rank, "device_expert": [e for e in held if e != EMPTY]}
                    for rank, held in enumerate(ranks)
                ],
            }
            for number, ranks in enumerate(grid)
        ]
        text = json.dumps({"moe_layer_count": placed.num_layers, "layer_list": layers}) + "\n"
        note = "layers are counted among mixture-of-experts layers: every one of the model's must be placed"
        return EngineFile(text.encode(), (note,))

    def read(self, path: Path, about: About) -> StoredPlacement:
        """All layers, with all devices."""
        data = read_json(path)
        layers = data.get("layer_list") if isinstance(data, dict) else None
        if not isinstance(layers, list) or data.get("moe_layer_count") != len(layers):
            message = "accepted: a JSON object with layer_list, and its length as moe_layer_count"
            raise InputError([Problem("layer_list", message, path.name)])
        if len(layers) != len(about.layer_indices):
            message = f"got {len(layers)} layers; accepted: {len(about.layer_indices)}, as of the traffic"
            raise InputError([Problem("layer_list", message, path.name)])
        held = [_devices(layer, number, about, path) for number, layer in enumerate(layers)]
        widest = max(len(experts) for ranks in held for experts in ranks)
        rows = np.full((len(held), about.num_ranks, max(widest, 1)), EMPTY, np.int64)
        for number, ranks in enumerate(held):
            for rank, experts in enumerate(ranks):
                rows[number, rank, : len(experts)] = experts
        return placed_rows(rows.reshape(len(held), -1), about, path, "vLLM-Ascend file")


def _devices(layer: Any, number: int, about: About, path: Path) -> list[list[int]]:
    """Experts of every device of one layer."""
    where = f"layer_list[{number}]"
    devices = layer.get("device_list") if isinstance(layer, dict) else None
    if not isinstance(devices, list) or not all(isinstance(device, dict) for device in devices):
        raise InputError([Problem(where, "accepted: layer_id, device_count, device_list", path.name)])
    if layer.get("layer_id") != number:
        message = f"got layer_id {layer.get('layer_id')}; accepted: {number}, layers in order"
        raise InputError([Problem(where, message, path.name)])
    ids = [device.get("device_id") for device in devices]
    if ids != list(range(about.num_ranks)):
        message = f"got devices {ids}; accepted: 0 to {about.num_ranks - 1} in order"
        raise InputError([Problem(where, message, path.name)])
    held = [device.get("device_expert") for device in devices]
    if not is_integer_table(held):
        raise InputError([Problem(where, "device_expert: accepted: lists of whole numbers", path.name)])
    return held
