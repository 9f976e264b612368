"""Policies registered by name: one small file each, found without a central list.

A policy is a frozen dataclass whose fields are its accepted parameters. Its kind's package
imports its own modules (:func:`import_modules`), so the decorator alone makes it known; third
parties add theirs through the entry-point group ``moesim.<kind>``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Generic, TypeVar

from moesim.errors import InputError, Problem, did_you_mean

T = TypeVar("T")

KINDS: dict[str, Registry[Any]] = {}
"""Every registry by kind, for ``moesim policies``."""


@dataclass
class Registry(Generic[T]):
    """Names to policy classes of one kind (``placement``, ``overlap``, ...).

    Parameters
    ----------
    kind : str
        Also the entry-point group suffix and the word in errors.
    package : str
        Package whose modules register the built-in policies.
    """

    kind: str
    package: str
    classes: dict[str, type[T]] = field(default_factory=dict)
    _loaded: bool = False

    def __post_init__(self) -> None:
        KINDS[self.kind] = self

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Class decorator that adds a policy under ``name``; a duplicate is a programming error."""

        def add(cls: type[T]) -> type[T]:
            if name in self.classes and self.classes[name] is not cls:
                message = f"{self.kind} policy {name!r} is registered twice"
                raise ValueError(message)
            cls.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[attr-defined]
            self.classes[name] = cls
            return cls

        return add

    def names(self) -> list[str]:
        """Registered names, sorted."""
        self._load()
        return sorted(self.classes)

    def items(self) -> Iterator[tuple[str, type[T]]]:
        """Pairs of name and class, sorted by name."""
        for name in self.names():
            yield name, self.classes[name]

    def build(self, name: str, params: Mapping[str, Any] | None = None, *, field: str = "") -> T:
        """Policy ``name`` with validated parameters.

        Raises
        ------
        InputError
            Unknown name, unknown parameter, or a value of the wrong type or range; all at once.
        """
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - keeps start-up light

        self._load()
        where = field or self.kind
        if name not in self.classes:
            known = ", ".join(self.names())
            raise InputError(
                [
                    Problem(
                        where,
                        f"unknown {self.kind} {name!r}{did_you_mean(name, self.classes)}; known: {known}",
                    )
                ]
            )
        cls = self.classes[name]
        try:
            return TypeAdapter(cls).validate_python(dict(params or {}))
        except ValidationError as error:
            from moesim.files.check import problems_of  # noqa: PLC0415

            known_fields = [entry.name for entry in fields(cls)] if is_dataclass(cls) else []
            raise InputError(problems_of(error, prefix=where, known=known_fields)) from None

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        import_modules(self.package)
        from importlib.metadata import entry_points  # noqa: PLC0415

        for entry in entry_points(group=f"moesim.{self.kind}"):
            entry.load()


def import_modules(package: str) -> None:
    """Import every module directly inside ``package`` so that its decorators run."""
    module = importlib.import_module(package)
    for info in pkgutil.iter_modules(module.__path__):
        importlib.import_module(f"{package}.{info.name}")
