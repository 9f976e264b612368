"""The same scenario at several values of some fields."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.errors import InputError, MoesimError, Problem
from moesim.files import Tree, read_tree
from moesim.files.find import find
from moesim.scenario.resolve import ROOM, resolve_tree
from moesim.scenario.result import Result
from moesim.scenario.run import run


@dataclass(frozen=True)
class Point:
    """One combination of values.

    Attributes
    ----------
    overrides : tuple of str
        ``dotted.path=value`` of each varied field.
    result : Result or None
        None where the point failed.
    error : str
        Why it failed.
    """

    overrides: tuple[str, ...]
    result: Result | None
    error: str = ""


def parse_axis(text: str) -> list[str]:
    """``'path=a,b,c'`` as ``['path=a', 'path=b', 'path=c']``; commas inside brackets do not split.

    Raises
    ------
    InputError
        No ``=`` or no value.
    """
    path, equals, values = text.partition("=")
    parts, depth = [""], 0
    for letter in values:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    if not equals or not path.strip() or not all(part.strip() for part in parts):
        raise InputError([Problem("--vary", f"got {text!r}; accepted: dotted.path=value,value,...")])
    return [f"{path.strip()}={part.strip()}" for part in parts]


def vary(
    name_or_path: str,
    axes: Sequence[Sequence[str]],
    overrides: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Result, list[Point]]:
    """Baseline and every combination of the axes' values.

    A point that does not fit or contradicts itself is kept with its error; a wrong baseline is raised.
    """
    tree = read_tree(find(name_or_path, ROOM))
    baseline = run(resolve_tree(_copy(tree), overrides), with_changes=False).result
    combinations = list(itertools.product(*axes))
    points = []
    for number, combination in enumerate(combinations):
        if progress is not None:
            progress(number, len(combinations))
        points.append(_point(tree, overrides, combination))
    return baseline, points


def _point(tree: Tree, overrides: Sequence[str], combination: tuple[str, ...]) -> Point:
    try:
        resolved = resolve_tree(_copy(tree), [*overrides, *combination])
        return Point(combination, run(resolved, with_changes=False).result)
    except MoesimError as error:
        return Point(combination, None, str(error))


def _copy(tree: Tree) -> Tree:
    return tree.merged(Tree({}))
