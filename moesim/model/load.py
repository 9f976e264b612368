"""Models by name (bundled) or by path to a ``config.json`` or its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from moesim.errors import InputError, Problem, did_you_mean
from moesim.files import Tree, read_tree, set_value
from moesim.files.tree import unknown_field
from moesim.model.from_hf import from_hf
from moesim.model.spec import ModelSpec
from moesim.model.variant import BLOCK

BUNDLED = Path(__file__).parent / "bundled"
CONFIG_FILE = "config.json"


def bundled_names() -> list[str]:
    """Names of the models shipped with moesim, sorted."""
    return sorted(path.stem for path in BUNDLED.glob("*.json"))


def bundled_name(name: str) -> str | None:
    """Bundled name that ``name`` spells, or None: ``'Qwen3-30B-A3B'`` is ``'qwen3_30b_a3b'``.

    Names differ in case, hyphens, dots and underscores only; anything with a path separator is a path.
    """
    if Path(name).name != name:
        return None
    plain = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return plain if (BUNDLED / f"{plain}.json").is_file() else None


def load(name_or_path: str, *, field: str = "model", where: str = "") -> ModelSpec:
    """Model called ``name_or_path``; parameters and errors as :func:`read_config`."""
    return from_hf(*read_config(name_or_path, field=field, where=where))


def unknown_in(config: Mapping[str, Any], key: str) -> str | None:
    """What to say of a field that a configuration does not have; None where it may be given.

    A configuration holds any key, so a misspelt one would change nothing in silence.
    """
    return None if key in config or key == BLOCK else unknown_field(key, list(config))


def load_changed(name: str, assignments: Sequence[str], *, field: str = "model") -> ModelSpec:
    """Model whose configuration has other values, each as ``dotted.path=value``; published counts are gone.

    Raises
    ------
    InputError
        As :func:`read_config`, a field that the configuration does not have (:mod:`moesim.model.variant`
        aside), or a value that does not fit.
    """
    tree, name = read_config(name, field=field)
    for assignment in assignments:
        key = assignment.partition("=")[0].strip().split(".")[0]
        unknown = unknown_in(tree.data, key)
        if unknown is not None:
            raise InputError([Problem(key, unknown, "--set")])
        set_value(tree, assignment)
    return replace(from_hf(tree, name), published_total=None, published_active=None)


def read_config(name_or_path: str, *, field: str = "model", where: str = "") -> tuple[Tree, str]:
    """Raw configuration of a model, and the model's name.

    Parameters
    ----------
    name_or_path : str
        A bundled name (in any spelling that :func:`bundled_name` accepts), a ``config.json``, or a
        folder that holds one. A bundled file may say ``{"same_as": NAME}`` for weights that share
        another model's shapes.
    field, where : str
        What an error points at.

    Raises
    ------
    InputError
        Nothing of that name, or a file that is not readable.
    """
    name = bundled_name(name_or_path)
    if name is not None:
        return _bundled_tree(BUNDLED / f"{name}.json"), name
    path = Path(name_or_path)
    if path.is_dir():
        path /= CONFIG_FILE
    if path.is_file():
        name = path.parent.name if path.name == CONFIG_FILE else path.stem
        return read_tree(path), name or "model"
    known = bundled_names()
    message = (
        f"no model {name_or_path!r}{did_you_mean(name_or_path, known)}; accepted: a path to a config.json, "
        f"a folder that holds one, or one of {', '.join(known)}"
    )
    raise InputError([Problem(field, message, where)])


def _bundled_tree(path: Path) -> Tree:
    tree = read_tree(path)
    base = tree.data.get("same_as")
    if base is None:
        return tree
    return _bundled_tree(BUNDLED / f"{base}.json").merged(tree)
