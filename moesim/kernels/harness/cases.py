"""One measurement before it is taken."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Call = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A shape of one family, and how to build the calls that are timed.

    Attributes
    ----------
    family : str
        Also the name of the file.
    source : str
        Which kernel or library path.
    dtype : str
        Datatype of the operands.
    features : dict
        Named shape quantities: the columns of the file.
    build : callable
        ``build(copies) -> calls``: that many copies of the work on memory of their own.
    working_bytes : float
        Memory that one copy touches: decides how many copies outgrow the cache.
    labels : dict
        Feature columns that are words.
    threads : int, optional
        CPU threads to use; all of them by default.
    """

    family: str
    source: str
    dtype: str
    features: Mapping[str, float]
    build: Callable[[int], list[Call]]
    working_bytes: float = 0.0
    labels: Mapping[str, str] = field(default_factory=dict)
    threads: int | None = None

    @property
    def key(self) -> tuple[str, ...]:
        """What makes two cases the same measurement."""
        numbers = tuple(f"{name}={self.features[name]:g}" for name in sorted(self.features))
        words = tuple(f"{name}={self.labels[name]}" for name in sorted(self.labels))
        return (self.family, self.source, self.dtype, *words, *numbers)


def interleaved(lists: Iterable[Iterable[Case]]) -> list[Case]:
    """Cases of several families in turn, so that a short budget still sees all of them.

    A family with fewer cases is spread over the whole schedule, from its beginning on.
    """
    columns = [list(cases) for cases in lists]
    longest = max((len(column) for column in columns), default=0)
    order = []
    for place in range(longest):
        for column in columns:
            low, high = (-(-turn * len(column) // longest) for turn in (place, place + 1))
            order += column[low:high]
    return order


def clones(tensor: Any, copies: int) -> list[Any]:
    """The same numbers in that many places of memory."""
    return [tensor, *(tensor.clone() for _ in range(copies - 1))]
