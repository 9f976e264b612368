"""Files of serving engines: the kind of format, writing in one, and reading one back.

Each format turns one placement into a file that the engine reads at start-up, says what it cannot
hold, and reads such files. Layers are numbered as each engine numbers them. Formats as read in the
engines' public sources in 2026.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moesim.errors import InputError, Problem
from moesim.files import find
from moesim.placement.placed import Ints, Placement
from moesim.placement.store import StoredPlacement
from moesim.registry import Registry


@dataclass(frozen=True)
class EngineFile:
    """Content for an engine, and what a reader should know about it."""

    content: bytes
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The content of a text format."""
        return self.content.decode()


@dataclass(frozen=True)
class About:
    """What engine files do not say of themselves.

    Attributes
    ----------
    num_experts, num_ranks : int
        Logical experts of a layer, and expert-parallel ranks. [-]
    layer_indices : tuple of int
        Model layers that have experts, in order.
    model : str
        Name of the model.
    """

    num_experts: int
    num_ranks: int
    layer_indices: tuple[int, ...]
    model: str = ""


class Format(Protocol):
    """A file format of placements."""

    def write(self, stored: StoredPlacement, num_hidden_layers: int) -> EngineFile:
        """File of a placement."""
        ...

    def read(self, path: Path, about: About) -> StoredPlacement:
        """Placement of a file."""
        ...


formats: Registry[Format] = Registry("placement_format", "moesim.placement.engines")


def write_as(format_name: str, stored: StoredPlacement, num_hidden_layers: int | None = None) -> EngineFile:
    """File of a placement in a named format.

    Parameters
    ----------
    format_name : str
        Registered name.
    stored : StoredPlacement
        The placement.
    num_hidden_layers : int, optional
        Layers of the model, dense ones included; default is up to the last placed layer. [-]

    Raises
    ------
    InputError
        Unknown format, fewer layers than are placed, or slots that the format cannot hold.
    """
    form = formats.build(format_name, field="format")
    least = stored.layer_indices[-1] + 1
    if num_hidden_layers is not None and num_hidden_layers < least:
        raise InputError.at(
            "num_hidden_layers", num_hidden_layers, f"at least {least}: layer {least - 1} is placed"
        )
    made = form.write(stored, num_hidden_layers or least)
    if stored.placement.split is None or format_name == "moesim":
        return made
    note = "shares of copies are not part of this format; the engine splits tokens over copies in its own way"
    return EngineFile(made.content, (*made.notes, note))


def read_as(format_name: str, name_or_path: str, about: About) -> StoredPlacement:
    """Placement of a file in a named format.

    Raises
    ------
    InputError
        Unknown format or file, malformed content, another model's shape, or an expert without slot.
    """
    form = formats.build(format_name, field="format")
    stored = form.read(find(name_or_path, "placements", field="FILE"), about)
    check_shape(stored, about)
    return stored


def check_shape(stored: StoredPlacement, about: About) -> None:
    """Refuse a placement of other layers, experts or ranks.

    Raises
    ------
    InputError
        Every mismatch at once.
    """
    placed = stored.placement
    pairs = (
        ("layer_indices", list(stored.layer_indices), list(about.layer_indices)),
        ("num_experts", placed.num_experts, about.num_experts),
        ("num_ranks", placed.num_ranks, about.num_ranks),
    )
    problems = [
        Problem(name, f"got {got}; accepted: {wanted}, as of the traffic and --ranks")
        for name, got, wanted in pairs
        if got != wanted
    ]
    if problems:
        raise InputError(problems, source=stored.source)


def equal_rows(stored: StoredPlacement, engine: str) -> Ints:
    """Expert in each slot, ``(layers, slots)``, for formats whose ranks have as many slots in every layer.

    Raises
    ------
    InputError
        Some ranks or layers have fewer.
    """
    slots = stored.placement.rank_slots
    if (slots != slots.max()).any():
        message = (
            f"got {slots.min()} to {slots.max()} slots; {engine} has as many on every rank and in every layer"
        )
        raise InputError([Problem("rank_slots", message)])
    return stored.placement.physical_to_logical


def placed_rows(rows: Any, about: About, path: Path, said: str) -> StoredPlacement:
    """Stored placement of rows of slots; a placement that does not hold together names the file."""
    try:
        placement = Placement(np.asarray(rows), about.num_experts, about.num_ranks)
    except InputError as error:
        raise InputError(error.problems, source=str(path)) from None
    return StoredPlacement(placement, about.model, about.layer_indices, "", f"{said} {path.name}")


def is_integer_table(rows: object) -> bool:
    """Whether plain data is a list of lists of whole numbers."""
    return isinstance(rows, list) and all(
        isinstance(row, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in row)
        for row in rows
    )
