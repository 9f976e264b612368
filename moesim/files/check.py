"""Pydantic validation with every problem told as ``file:line  field: got ...; accepted: ...``."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from moesim.errors import InputError, Problem
from moesim.files.tree import Tree, unknown_field
from moesim.units import unit_of

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound="BaseModel")

_ACCEPTED = {
    "greater_than": "a number > {gt:g}",
    "greater_than_equal": "a number >= {ge:g}",
    "less_than": "a number < {lt:g}",
    "less_than_equal": "a number <= {le:g}",
    "float_parsing": "a plain number in SI base units",
    "float_type": "a plain number in SI base units",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "a word",
    "dict_type": "a mapping of fields",
    "model_type": "a mapping of fields",
    "model_attributes_type": "a mapping of fields",
    "list_type": "a list",
    "tuple_type": "a list",
    "finite_number": "a finite number",
    "literal_error": "one of {expected}",
    "enum": "one of {expected}",
}


def validated(model: type[M], tree: Tree) -> M:
    """Tree as an instance of ``model``.

    Raises
    ------
    InputError
        Every problem of the tree at once.
    """
    from pydantic import ValidationError  # noqa: PLC0415

    try:
        return model.model_validate(tree.data)
    except ValidationError as error:
        raise InputError(problems_of(error, tree=tree, model=model), source=tree.source) from None


def problems_of(
    error: ValidationError,
    *,
    tree: Tree | None = None,
    model: type[BaseModel] | None = None,
    prefix: str = "",
    known: Sequence[str] = (),
) -> list[Problem]:
    """Problems behind a pydantic error, located in ``tree`` where one is given."""
    problems = []
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(_is_inside(other["loc"], item["loc"]) for other in items):
            # elements that were refused do not count; they are told themselves
            continue
        keys = tuple(k for k in item["loc"] if not _is_tag(k, tree, item["loc"]))
        path = ".".join(map(str, (prefix, *keys) if prefix else keys))
        where = tree.where(keys) if tree is not None else ""
        problems.append(Problem(path, _message(item, keys, model, known), where))
    return problems


def _is_inside(place: tuple[str | int, ...], of: tuple[str | int, ...]) -> bool:
    """Whether a place lies below another."""
    return len(place) > len(of) and place[: len(of)] == of


def _message(
    item: Any, keys: tuple[str | int, ...], model: type[BaseModel] | None, known: Sequence[str]
) -> str:
    kind = item["type"]
    if kind == "missing":
        return "missing (required)"
    if kind in {"extra_forbidden", "unexpected_keyword_argument"}:
        return unknown_field(str(keys[-1]), list(known) or _fields_at(model, keys[:-1]))
    if kind in {"value_error", "assertion_error"}:
        return str(item["ctx"]["error"]) if "ctx" in item else str(item["msg"])
    accepted = _ACCEPTED.get(kind)
    if accepted is None:
        return f"got {item['input']!r}; {item['msg']}"
    told = accepted.format(**item.get("ctx", {})) + _unit(kind, keys)
    return f"got {_short(item['input'])}; accepted: {told}"


def _unit(kind: str, keys: tuple[str | int, ...]) -> str:
    """Unit in brackets after a bound, taken from the name of the field."""
    unit = unit_of(str(keys[-1])) if keys and "than" in kind else ""
    return "" if unit in {"", "count", "fraction", "ratio"} else f" [{unit.replace('_per_', '/')}]"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_tag(key: str | int, tree: Tree | None, loc: Sequence[str | int]) -> bool:
    """Pydantic puts union tags into the location; they are not part of the file."""
    if tree is None or not isinstance(key, str):
        return False
    known_keys = {k for keys in tree.positions for k in keys}
    return key not in known_keys and key != loc[-1]


def _fields_at(model: type[BaseModel] | None, keys: tuple[str | int, ...]) -> list[str]:
    """Field names of the model that sits at ``keys`` below ``model``."""
    candidates: list[Any] = [model]
    for key in keys:
        following: list[Any] = []
        for kind in candidates:
            fields = getattr(kind, "model_fields", None)
            if fields is None:
                continue
            if key in fields:
                following += _inner(fields[key].annotation)
        candidates = following
    return sorted(
        {name for kind in candidates if kind is not None for name in getattr(kind, "model_fields", {})}
    )


def _inner(annotation: Any) -> list[Any]:
    """Classes inside a union, optional, annotated, mapping or list annotation."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation]
    args = typing.get_args(annotation)
    origin = typing.get_origin(annotation)
    if origin is dict:
        # a mapping of named parts: its next key is a free name
        return [_Mapping(_inner(args[1]))]
    if origin in {list, tuple}:
        return [_Mapping([c for a in args for c in _inner(a)])]
    if origin in {typing.Union, types.UnionType} or args:
        return [c for a in args for c in _inner(a)]
    return [annotation]


class _Mapping:
    """Stands for ``dict[str, X]`` while walking: any key leads to ``X``."""

    def __init__(self, inner: list[Any]) -> None:
        self.model_fields = _Anything(inner)


class _Anything(dict[str, Any]):
    def __init__(self, inner: list[Any]) -> None:
        super().__init__()
        self.inner = inner

    def __contains__(self, key: object) -> bool:
        return True

    def __getitem__(self, key: str) -> Any:
        return types.SimpleNamespace(annotation=typing.Union[tuple(self.inner)])  # noqa: UP007
