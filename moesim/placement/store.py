"""Placement files of our own: JSON, one line a layer, read without executing anything.

Files hold tens of thousands of numbers, so they are read by the plain JSON reader, not by the one
that remembers the line of every value.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.files import Tree, to_json, validated, write_text
from moesim.files.tree import MAX_FILE_BYTES
from moesim.placement.placed import Placement

if TYPE_CHECKING:
    from pydantic import BaseModel

SCHEMA_VERSION = 1
KIND = "moesim_placement"


@dataclass(frozen=True)
class StoredPlacement:
    """A placement and what it is of.

    Attributes
    ----------
    placement : Placement
        Slots of every placed layer.
    model : str
        Name of the model.
    layer_indices : tuple of int
        Model layer number of each placed layer, increasing.
    method : str
        How it was found; free text.
    source : str
        Which traffic it was found for; free text.
    """

    placement: Placement
    model: str
    layer_indices: tuple[int, ...]
    method: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        layers = self.layer_indices
        if len(layers) != self.placement.num_layers or list(layers) != sorted({*layers}) or min(layers) < 0:
            accepted = f"{self.placement.num_layers} different layer numbers >= 0, in order"
            raise InputError.at("layer_indices", list(layers), accepted)


def to_text(stored: StoredPlacement) -> str:
    """JSON text of a placement; same placement, same text."""
    placed = stored.placement
    head: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "kind": KIND,
        "model": stored.model,
        "method": stored.method,
        "source": stored.source,
        "num_experts": placed.num_experts,
        "num_ranks": placed.num_ranks,
        "slots_per_rank": placed.slots_per_rank,
    }
    lines = to_json(head).rstrip().removesuffix("\n}")
    lines += f',\n  "layer_indices": {json.dumps(list(stored.layer_indices))}'
    lines += f',\n  "physical_to_logical": {rows_text(placed.physical_to_logical)}'
    if placed.split is not None:
        lines += f',\n  "split": {rows_text(placed.split)}'
    return lines + "\n}\n"


def rows_text(rows: NDArray[Any]) -> str:
    """JSON list of lists with one line a row."""
    return "[\n    " + ",\n    ".join(json.dumps(row) for row in rows.tolist()) + "\n  ]"


def write_placement(path: Path, stored: StoredPlacement) -> Path:
    """Write a placement atomically."""
    return write_text(path, to_text(stored))


def read_placement(path: Path) -> StoredPlacement:
    """Placement written by :func:`write_placement`.

    Raises
    ------
    InputError
        Unreadable, not JSON, wrong or unknown fields, or a placement that does not hold together.
    """
    data = read_json(path)
    if not isinstance(data, dict) or data.get("kind") != KIND:
        message = f"not a placement file: accepted is a JSON object with kind {KIND!r}"
        raise InputError([Problem("kind", message, path.name)])
    tree = Tree(data, {(key,): path.name for key in data}, str(path))
    found: Any = validated(_file_model(), tree)
    rows = rectangle(found.physical_to_logical, "physical_to_logical", path)
    split = None if found.split is None else rectangle(found.split, "split", path)
    try:
        placement = Placement(rows, found.num_experts, found.num_ranks, split)
        if placement.slots_per_rank != found.slots_per_rank:
            raise InputError.at(
                "slots_per_rank", found.slots_per_rank, f"{placement.slots_per_rank} as in the rows"
            )
        return StoredPlacement(placement, found.model, tuple(found.layer_indices), found.method, found.source)
    except InputError as error:
        raise InputError(error.problems, source=str(path)) from None


def read_json(path: Path) -> Any:
    """Plain JSON; refuses what is too large, not JSON, or has a key twice.

    Raises
    ------
    InputError
        With file and line.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            message = f"larger than {MAX_FILE_BYTES} bytes; not a placement file"
            raise InputError([Problem("", message, path.name)])
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("", f"cannot be read as text: {error}", str(path))]) from None
    except json.JSONDecodeError as error:
        where = f"{path.name}:{error.lineno}"
        raise InputError([Problem("", f"not valid JSON: {error.msg}", where)]) from None
    except (ValueError, RecursionError) as error:
        raise InputError([Problem("", f"not valid JSON: {error}", path.name)]) from None


def rectangle(rows: Sequence[Sequence[float]], field: str, path: Path) -> NDArray[Any]:
    """Rows of one length as an array."""
    if not rows or len({len(row) for row in rows}) != 1 or not rows[0]:
        lengths = sorted({len(row) for row in rows})
        message = f"got rows of lengths {lengths}; accepted: one length, at least 1"
        raise InputError([Problem(field, message, path.name)])
    return np.array(rows)


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            message = f"key {key!r} appears twice"
            raise ValueError(message)
        found[key] = value
    return found


def _file_model() -> type[BaseModel]:
    from typing import Literal  # noqa: PLC0415

    from pydantic import BaseModel, ConfigDict, Field, StrictInt  # noqa: PLC0415

    class PlacementFile(BaseModel):
        model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

        schema_version: Literal[1]
        kind: Literal["moesim_placement"]
        model: str
        method: str = ""
        source: str = ""
        num_experts: StrictInt = Field(ge=1)
        num_ranks: StrictInt = Field(ge=1)
        slots_per_rank: StrictInt = Field(ge=1)
        layer_indices: list[StrictInt]
        physical_to_logical: list[list[StrictInt]]
        split: list[list[float]] | None = None

    return PlacementFile
