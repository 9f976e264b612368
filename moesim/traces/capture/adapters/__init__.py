"""Where the routing of a model is read: each kind of mixture-of-experts block is one module here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from moesim.registry import Registry

Choices: TypeAlias = tuple[Any, Any]
"""Expert ids ``(tokens, slots)`` and their weights of the same shape, or None without weights; tensors.

An id outside the experts marks a slot without expert."""


@dataclass(frozen=True, slots=True)
class Point:
    """A module of a model whose call shows the choices of one layer.

    Attributes
    ----------
    module : torch.nn.Module
        What is hooked.
    read : callable
        Choices from the call's arguments, or from its result.
    after : bool
        Read the result instead of the arguments.
    """

    module: Any
    read: Callable[[Sequence[Any]], Choices]
    after: bool = False


class Adapter(Protocol):
    """Knows one way in which models route."""

    def point(self, block: Any) -> Point | None:
        """Where to read the choices of ``block``, any module of a model; None if it is not its kind."""
        ...


adapters: Registry[Adapter] = Registry("capture", "moesim.traces.capture.adapters")
"""Ways to read routing, by name; ``experts_call`` serves every block that no other one claims."""

GENERIC = "experts_call"


def class_name(module: Any) -> str:
    """Name of a module's class, which tells the kinds apart without importing any model."""
    return type(module).__name__


def child(block: Any, name: str) -> Any:
    """Submodule of that name, or None; parameters and plain attributes do not count."""
    return dict(block.named_children()).get(name)
