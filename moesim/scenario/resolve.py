"""Scenario file to one resolved tree: names replaced by what they stand for, then ``--set`` on top.

Precedence: class default < profile < scenario file < ``--set``. The resolved tree is what
``--dry-run``, ``run.json`` and ``explain`` show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesim.errors import InputError, Problem
from moesim.files import Tree, find, read_tree, set_value, validated
from moesim.hardware.load import resolve_cluster
from moesim.model.load import read_config, unknown_in
from moesim.scenario.schema import Scenario

ROOM = "scenarios"


@dataclass(frozen=True)
class Resolved:
    """A validated scenario beside the tree it came from.

    Attributes
    ----------
    scenario : Scenario
        Validated values.
    tree : Tree
        The same values as plain data with the position each was written at.
    model_name : str
        Name or path under which the model was asked for.
    """

    scenario: Scenario
    tree: Tree
    model_name: str


def resolve(name_or_path: str, overrides: Sequence[str] = ()) -> Resolved:
    """Scenario by file or shipped name with ``dotted.path=value`` overrides.

    Raises
    ------
    InputError
        Every problem of the file and of the overrides, with file and line.
    """
    path = find(name_or_path, ROOM, suffixes=(".yaml", ".yml", ".json"))
    return resolve_tree(read_tree(path), overrides)


def resolve_tree(tree: Tree, overrides: Sequence[str] = ()) -> Resolved:
    """As :func:`resolve`, from a tree that was read already."""
    if not isinstance(tree.data, dict):
        raise InputError([Problem("", "not a scenario; accepted: a mapping of fields", tree.source)])
    tree = Tree(dict(tree.data), dict(tree.positions), tree.source)
    references, values = _split(overrides)
    for assignment in references:
        set_value(tree, assignment)
    tree, model_name = _with_model(tree)
    tree = resolve_cluster(tree)
    for assignment in values:
        _check_known_model_field(tree, assignment)
        set_value(tree, assignment)
    return Resolved(validated(Scenario, tree), tree, model_name)


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides that name a profile, which come before inlining, and all others."""
    references = [o for o in overrides if o.partition("=")[0].strip() in {"model", "cluster", "cluster.node"}]
    return references, [o for o in overrides if o not in references]


def _with_model(tree: Tree) -> tuple[Tree, str]:
    """Tree whose ``model`` is the config itself, and the name it was asked for."""
    given = tree.data.get("model")
    overrides: dict[str, Any] = {}
    if isinstance(given, dict) and "name" in given:
        overrides = {k: v for k, v in given.items() if k != "name"}
        given = given["name"]
    if given is None:
        return tree, ""
    if not isinstance(given, str):
        accepted = "a bundled name, a path to a config.json, or {name: ..., field: value}"
        message = f"got {given!r}; accepted: {accepted}"
        raise InputError([Problem("model", message, tree.where(("model",)))])
    config, name = read_config(given, field="model", where=tree.where(("model",)))
    unknown = [
        Problem(f"model.{key}", said, tree.where(("model", key)))
        for key in overrides
        if (said := unknown_in(config.data, key)) is not None
    ]
    if unknown:
        raise InputError(unknown, source=tree.source)
    positions = {("model", *k): v for k, v in config.positions.items()}
    positions |= {k: v for k, v in tree.positions.items() if k[:1] != ("model",) or len(k) > 1}
    data = tree.data | {"model": config.data | overrides}
    return Tree(data, positions, tree.source), name


def _check_known_model_field(tree: Tree, assignment: str) -> None:
    """Raise if an override names a field that the model's configuration does not have."""
    keys = assignment.partition("=")[0].strip().split(".")
    model = tree.data.get("model")
    if keys[0] != "model" or len(keys) < 2 or not isinstance(model, dict):
        return
    unknown = unknown_in(model, keys[1])
    if unknown is not None:
        raise InputError([Problem(".".join(keys), unknown, "--set")])
