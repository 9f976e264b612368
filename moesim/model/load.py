"""Models by name (bundled) or by path to a ``config.json`` or its folder."""

from __future__ import annotations

from pathlib import Path

from moesim.errors import InputError, Problem, did_you_mean
from moesim.files import Tree, read_tree
from moesim.model.from_hf import from_hf
from moesim.model.spec import ModelSpec

BUNDLED = Path(__file__).parent / "bundled"
CONFIG_FILE = "config.json"


def bundled_names() -> list[str]:
    """Names of the models shipped with moesim, sorted."""
    return sorted(path.stem for path in BUNDLED.glob("*.json"))


def load(name_or_path: str, *, field: str = "model", where: str = "") -> ModelSpec:
    """Model called ``name_or_path``; parameters and errors as :func:`read_config`."""
    return from_hf(*read_config(name_or_path, field=field, where=where))


def read_config(name_or_path: str, *, field: str = "model", where: str = "") -> tuple[Tree, str]:
    """Raw configuration of a model, and the model's name.

    Parameters
    ----------
    name_or_path : str
        A bundled name, a ``config.json``, or a folder that holds one. A bundled file may say
        ``{"same_as": NAME}`` for weights that share another model's shapes.
    field, where : str
        What an error points at.

    Raises
    ------
    InputError
        Nothing of that name, or a file that is not readable.
    """
    bundled = BUNDLED / f"{name_or_path}.json"
    if Path(name_or_path).name == name_or_path and bundled.is_file():
        return _bundled_tree(bundled), name_or_path
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
    return read_tree(BUNDLED / f"{base}.json").merged(tree)
