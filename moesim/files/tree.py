"""YAML and JSON as plain data that remembers the line of every value.

JSON is read by the same reader (it is a subset of YAML 1.2), so both give positions and refuse
duplicate keys. Tags, and with them any code, are refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from moesim.errors import InputError, Problem, did_you_mean
from moesim.units import MIB

Keys: TypeAlias = tuple[str | int, ...]

MAX_FILE_BYTES = 16 * MIB
MAX_NODES = 500_000
"""Aliases may multiply: a file that unfolds to more values than this is refused."""


@dataclass
class Tree:
    """Nested plain data and where each value was written.

    Attributes
    ----------
    data : Any
        Dictionaries, lists, strings, numbers, booleans and None.
    positions : dict
        ``{keys: 'file:line'}`` for every value that came from a file or an override.
    source : str
        File name shown at the head of an error.
    """

    data: Any
    positions: dict[Keys, str] = field(default_factory=dict)
    source: str = ""

    def where(self, keys: Keys) -> str:
        """Position of a value, or of its nearest enclosing one."""
        for stop in range(len(keys), -1, -1):
            if keys[:stop] in self.positions:
                return self.positions[keys[:stop]]
        return self.source

    def sub(self, key: str) -> Tree:
        """The part below one top-level key."""
        inner = {k[1:]: v for k, v in self.positions.items() if k and k[0] == key}
        return Tree(self.data[key], inner, self.source)

    def merged(self, over: Tree, at: Keys = ()) -> Tree:
        """This tree with ``over`` laid over the place ``at``; mappings merge, everything else replaces."""
        result = Tree(copy.deepcopy(self.data), dict(self.positions), self.source)
        if at:
            over_data: Any = over.data
            for key in reversed(at):
                over_data = {key: over_data}
            over = Tree(over_data, {(*at, *k): v for k, v in over.positions.items()}, over.source)
        result.data = _overlaid(result.data, over.data)
        result.positions.update(over.positions)
        return result

    def leaves(self) -> Iterator[tuple[Keys, Any]]:
        """Every scalar with its keys, in order."""
        yield from _leaves(self.data, ())


def read_tree(path: Path) -> Tree:
    """File as a :class:`Tree`.

    Raises
    ------
    InputError
        Unreadable, not YAML/JSON, a duplicate key, a tag, or too large; with file and line.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(
                [Problem("", f"larger than {MAX_FILE_BYTES} bytes; not a description file", path.name)]
            )
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("", f"cannot be read as text: {error}", str(path))]) from None
    parsed = _parsed(text, path.name)
    return Tree(copy.deepcopy(parsed.data), dict(parsed.positions), str(path))


@lru_cache(maxsize=64)
def _parsed(text: str, name: str) -> Tree:
    """Tree of a file's text; profiles and models are read again and again, and parsing is slow."""
    from ruamel.yaml import YAML  # noqa: PLC0415 - keeps --help light
    from ruamel.yaml.error import MarkedYAMLError, YAMLError  # noqa: PLC0415

    try:
        raw = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}:{mark.line + 1}" if mark else name
        said = (error.problem or str(error)).splitlines()[0]
        raise InputError([Problem("", f"not valid YAML: {said}", where)]) from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise InputError([Problem("", f"not valid YAML: {str(error).splitlines()[0]}", name)]) from None
    tree = Tree(None, {(): name}, name)
    tree.data = _plain(raw, (), tree, name)
    return tree


def set_value(tree: Tree, assignment: str) -> None:
    """Apply one ``dotted.path=value`` override in place; the value is read as YAML.

    Raises
    ------
    InputError
        No ``=``, or a path that runs through a scalar.
    """
    from ruamel.yaml import YAML  # noqa: PLC0415
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415

    path, equals, text = assignment.partition("=")
    if not equals or not path.strip():
        raise InputError([Problem("--set", f"got {assignment!r}; accepted: dotted.path=value")])
    try:
        value = _plain(YAML(typ="rt").load(text) if text.strip() else None, (), Tree(None), "--set")
    except YAMLError:
        raise InputError([Problem(path, f"cannot read the value {text!r}", "--set")]) from None
    keys = tuple(path.strip().split("."))
    node = tree.data
    for depth, key in enumerate(keys[:-1]):
        if not isinstance(node, dict):
            parent = ".".join(keys[:depth])
            raise InputError([Problem(path, f"{parent!r} is a single value and has no fields", "--set")])
        if not isinstance(node.get(key), dict):
            if isinstance(node.get(key), list | str | int | float):
                message = f"{'.'.join(keys[: depth + 1])!r} is a single value and has no fields"
                raise InputError([Problem(path, message, "--set")])
            node[key] = {}
        node = node[key]
    node[keys[-1]] = value
    tree.positions = {k: v for k, v in tree.positions.items() if k[: len(keys)] != keys}
    tree.positions[keys] = "--set"


def unknown_field(name: str, known: Mapping[str, Any] | list[str]) -> str:
    """Message for a field that does not exist, with the nearest one that does."""
    hint = did_you_mean(name, known)
    return f"unknown field{hint}" if hint else f"unknown field; accepted: {', '.join(sorted(known))}"


def _plain(node: Any, keys: Keys, tree: Tree, name: str) -> Any:
    if len(tree.positions) > MAX_NODES:
        raise InputError([Problem("", f"unfolds to more than {MAX_NODES} values", name)])
    if isinstance(node, Mapping):
        result = {}
        for key, value in node.items():
            if not isinstance(key, str | int | float):
                raise InputError(
                    [Problem(".".join(map(str, keys)), "a key is not a plain word or number", name)]
                )
            inner = (*keys, str(key))
            tree.positions[inner] = _position(node, key, name)
            result[str(key)] = _plain(value, inner, tree, name)
        return result
    if isinstance(node, list):
        result_list = []
        for index, value in enumerate(node):
            inner = (*keys, index)
            tree.positions[inner] = _position(node, index, name)
            result_list.append(_plain(value, inner, tree, name))
        return result_list
    if node is None or isinstance(node, bool):
        return node
    for kind in (int, float, str):
        if isinstance(node, kind):
            return kind(node)
    where = tree.where(keys)
    raise InputError(
        [Problem(".".join(map(str, keys)), f"tags and {type(node).__name__} values are not read", where)]
    )


def _position(node: Any, key: Any, name: str) -> str:
    place = getattr(node, "lc", None)
    mark = (place.data or {}).get(key) if place is not None else None
    return f"{name}:{mark[0] + 1}" if mark else name


def _overlaid(base: Any, over: Any) -> Any:
    if isinstance(base, dict) and isinstance(over, dict):
        merged = dict(base)
        for key, value in over.items():
            merged[key] = _overlaid(base[key], value) if key in base else value
        return merged
    return over


def _leaves(node: Any, keys: Keys) -> Iterator[tuple[Keys, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _leaves(value, (*keys, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _leaves(value, (*keys, index))
    else:
        yield keys, node
