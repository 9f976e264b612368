"""Everything that can be said about a named profile: its numbers with their origin, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.errors import InputError, Problem
from moesim.files import Tree, validated
from moesim.hardware.check import Keys, implausible, quantity_name, unlikely_peaks
from moesim.hardware.device import Device, Sourced, source_in
from moesim.hardware.load import MODELS, read_profile
from moesim.units import unit_of


@dataclass(frozen=True, slots=True)
class FieldOrigin:
    """One value of a description and where it comes from.

    Attributes
    ----------
    path : str
        Dotted path.
    value : object
        Number, word or None.
    unit : str
        Unit that the name carries, empty for words.
    grade, source : str
        Evidence and its text; empty for what is not a number.
    where : str
        ``file:line``.
    """

    path: str
    value: Any
    unit: str
    grade: str
    source: str
    where: str


def field_origins(tree: Tree) -> list[FieldOrigin]:
    """Every value of an inlined description, in the order of the files."""
    rows = []
    for keys, value in tree.leaves():
        if "sources" in keys or keys[-1] == "schema_version":
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        text = _source(tree.data, keys) if is_number else ""
        grade, _, said = text.partition(":")
        unit = unit_of(quantity_name(keys)) if is_number else ""
        path = ".".join(map(str, keys))
        rows.append(FieldOrigin(path, value, unit, grade, said.strip(), tree.where(keys)))
    return rows


def profile_problems(name: str) -> list[Problem]:
    """What is wrong with a profile: shape, sources, name, and numbers that cannot be right."""
    profile = read_profile(name)
    tree, problems = profile.tree, list(profile.problems)
    if not profile.is_complete:
        return problems
    try:
        described = validated(MODELS[profile.kind], tree)
    except InputError as error:
        return [*problems, *error.problems]
    problems += implausible(tree)
    problems += [Problem(_path(keys), note, tree.where(keys)) for keys, note in _notes(described)]
    return problems


def _notes(described: Sourced, keys: Keys = ()) -> list[tuple[Keys, str]]:
    """Doubtful peak figures of every device inside a description."""
    if isinstance(described, Device):
        return [((*keys, "peak_flops_per_s"), note) for note in unlikely_peaks(described)]
    notes = []
    for field in ("node", "device", "pim"):
        part = getattr(described, field, None)
        if isinstance(part, Sourced):
            notes += _notes(part, (*keys, field))
    return notes


def _source(data: Any, keys: Keys) -> str:
    """Source of the value at ``keys`` in the innermost part that has one for it."""
    found = ""
    for depth, key in enumerate(keys):
        sources = data.get("sources") if isinstance(data, dict) else None
        if isinstance(sources, dict):
            found = source_in(sources, _path(keys[depth:])) or found
        data = data[key]
    return found


def _path(keys: Keys) -> str:
    return ".".join(map(str, keys))
