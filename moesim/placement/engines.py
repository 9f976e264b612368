"""Placements in the words of serving engines.

Each writer turns one placement into the text of a file that the engine reads at start-up, and says
what the format cannot hold. Layers are numbered as each engine numbers them. Formats as read in
the engines' public sources in 2026 (SGLang ``--init-expert-location``, TensorRT-LLM
``moe_config.load_balancer``, vLLM-Ascend ``expert_map_path``, vLLM 0.33 ``--eplb-config``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.errors import InputError, Problem
from moesim.placement.placed import Ints, Placement
from moesim.placement.store import StoredPlacement, read_json, rectangle, rows_text, to_text


@dataclass(frozen=True)
class EngineFile:
    """Text for an engine, and what a reader should know about it."""

    text: str
    notes: tuple[str, ...] = ()


def write_as(format_name: str, stored: StoredPlacement, num_hidden_layers: int | None = None) -> EngineFile:
    """File of a placement in a named format.

    Parameters
    ----------
    format_name : str
        One of :data:`FORMATS`.
    stored : StoredPlacement
        The placement.
    num_hidden_layers : int, optional
        Layers of the model, dense ones included; default is up to the last placed layer. [-]

    Raises
    ------
    InputError
        Unknown format, or fewer layers than are placed.
    """
    if format_name not in FORMATS:
        raise InputError.at("format", format_name, ", ".join(FORMATS))
    least = stored.layer_indices[-1] + 1
    if num_hidden_layers is not None and num_hidden_layers < least:
        raise InputError.at(
            "num_hidden_layers", num_hidden_layers, f"at least {least}: layer {least - 1} is placed"
        )
    made = FORMATS[format_name](stored, num_hidden_layers or least)
    if stored.placement.split is None or format_name == "moesim":
        return made
    note = "shares of copies are not part of this format; the engine splits tokens over copies in its own way"
    return EngineFile(made.text, (*made.notes, note))


def sglang(stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
    """JSON for SGLang's ``--init-expert-location``: a row for every layer of the model.

    Rows of dense layers are not used but must be there; they, and layers that were not placed,
    hold the experts in order. No other key is allowed beside the map.
    """
    placed = stored.placement
    row = np.arange(placed.num_slots) % placed.num_experts
    rows = np.tile(row, (num_hidden_layers, 1))
    rows[list(stored.layer_indices)] = placed.physical_to_logical
    redundant = placed.num_slots - placed.num_experts
    notes = [f"start SGLang with --ep-size {placed.num_ranks} --ep-num-redundant-experts {redundant}"]
    filled = num_hidden_layers - placed.num_layers
    if filled:
        notes.append(f"{filled} of {num_hidden_layers} rows (dense or not placed) hold the experts in order")
    return EngineFile(f'{{"physical_to_logical_map": {rows_text(rows)}}}\n', tuple(notes))


def tensorrt_llm(stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
    """YAML for TensorRT-LLM's ``moe_config.load_balancer``: placed layers by their model number, static."""
    placed = stored.placement
    lines = [f"num_slots: {placed.num_slots}", "initial_global_assignments:"]
    for layer, row in zip(stored.layer_indices, placed.physical_to_logical.tolist(), strict=True):
        lines.append(f"  {layer}: {json.dumps(row)}")
    lines.append("layer_updates_per_iter: 0")
    return EngineFile("\n".join(lines) + "\n")


def vllm_ascend(stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
    """JSON for vLLM-Ascend's ``expert_map_path``: mixture-of-experts layers only, counted from 0."""
    placed = stored.placement
    by_rank = placed.physical_to_logical.reshape(placed.num_layers, placed.num_ranks, -1).tolist()
    layers = [
        {
            "layer_id": number,
            "device_count": placed.num_ranks,
            "device_list": [{"device_id": rank, "device_expert": held} for rank, held in enumerate(ranks)],
        }
        for number, ranks in enumerate(by_rank)
    ]
    text = json.dumps({"moe_layer_count": placed.num_layers, "layer_list": layers}) + "\n"
    note = "layers are counted among mixture-of-experts layers: every one of the model's must be placed"
    return EngineFile(text, (note,))


def vllm(stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
    """Nearest ``--eplb-config`` of stock vLLM, which loads no placement: it balances while it runs."""
    placed = stored.placement
    redundant = placed.num_slots - placed.num_experts
    config = {"num_redundant_experts": redundant, "window_size": 1000, "step_interval": 3000}
    notes = [
        "stock vLLM has no static placement input; this is the nearest balancer setting, "
        "to be used with --enable-eplb --eplb-config",
    ]
    strategy = _stock_strategy(placed)
    if strategy is not None:
        notes.append(f"without balancing, --expert-placement-strategy {strategy} is this very placement")
    return EngineFile(json.dumps(config) + "\n", tuple(notes))


def moesim(stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
    """Our own format, which keeps everything."""
    return EngineFile(to_text(stored))


FORMATS: dict[str, Callable[[StoredPlacement, int], EngineFile]] = {
    "moesim": moesim,
    "sglang": sglang,
    "vllm": vllm,
    "trtllm": tensorrt_llm,
    "vllm-ascend": vllm_ascend,
}
"""Writers by the name that the command line uses."""


def read_sglang(
    path: Path, *, num_experts: int, num_ranks: int, layer_indices: tuple[int, ...]
) -> StoredPlacement:
    """Placement from a file for SGLang's ``--init-expert-location``.

    Parameters
    ----------
    path : Path
        JSON with a ``physical_to_logical_map`` of all model layers.
    num_experts, num_ranks : int
        Logical experts of a layer and expert-parallel ranks; the file holds neither. [-]
    layer_indices : tuple of int
        Model layers that have experts; the other rows are fillers.

    Raises
    ------
    InputError
        Another shape, missing layers, or rows that are no placement.
    """
    data = read_json(path)
    key = "physical_to_logical_map"
    if not isinstance(data, dict) or list(data) != [key] or not _is_integer_table(data[key]):
        message = f"accepted: a JSON object whose only key is {key!r}, a list of rows of whole numbers"
        raise InputError([Problem(key, message, path.name)])
    rows: Ints = rectangle(data[key], key, path)
    if not layer_indices or max(layer_indices) >= len(rows) or min(layer_indices) < 0:
        message = f"got layers {list(layer_indices)}; accepted: 0 to {len(rows) - 1}, the rows of the file"
        raise InputError([Problem("layer_indices", message, path.name)])
    try:
        placement = Placement(rows[list(layer_indices)], num_experts, num_ranks)
    except InputError as error:
        raise InputError(error.problems, source=str(path)) from None
    return StoredPlacement(placement, "", tuple(layer_indices), "", f"SGLang file {path.name}")


def _is_integer_table(rows: object) -> bool:
    return isinstance(rows, list) and all(
        isinstance(row, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in row)
        for row in rows
    )


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
