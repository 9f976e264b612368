"""The same scenario at several values of some fields, and other scenarios beside it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moesim.errors import InputError, MoesimError, Problem
from moesim.files import Tree, read_tree
from moesim.files.find import find
from moesim.scenario.resolve import ROOM, resolve_tree
from moesim.scenario.result import Result
from moesim.scenario.run import run

AS_IT_IS = "(as it is)"
"""Label of the baseline."""


@dataclass(frozen=True)
class Point:
    """One combination of values, or another scenario.

    Attributes
    ----------
    label : str
        What is different: the overrides, or the other scenario's name.
    overrides : tuple of str
        ``dotted.path=value`` of each varied field.
    result : Result or None
        None where the point failed.
    error : str
        Why it failed.
    """

    label: str
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
    *,
    against: Sequence[str] = (),
    tick: Callable[[str], None] = lambda label: None,
) -> tuple[Result, list[Point]]:
    """Baseline, every combination of the axes' values, and the other scenarios.

    Parameters
    ----------
    name_or_path : str
        Scenario that all else is compared with.
    axes : sequence of sequence of str
        ``dotted.path=value`` of one field each.
    overrides : sequence of str
        Of every run.
    against : sequence of str
        Other scenarios of the same question, as they are but for ``overrides``.
    tick : callable
        Called with the label of each finished run.

    Raises
    ------
    InputError
        A wrong baseline, or a scenario of another question. A point that does not fit or contradicts
        itself is kept with its error.
    """
    tree = read_tree(find(name_or_path, ROOM))
    others = {name: read_tree(find(name, ROOM, field="--against")) for name in against}
    question = tree.data.get("question")
    strange = [
        Problem("--against", f"{name} asks {other.data.get('question')!r}; accepted: {question!r}")
        for name, other in others.items()
        if other.data.get("question") != question
    ]
    if strange:
        raise InputError(strange)
    baseline = run(resolve_tree(_copy(tree), overrides), with_changes=False).result
    tick(AS_IT_IS)
    points = []
    for combination in itertools.product(*axes) if axes else ():
        points.append(_point(tree, " ".join(combination), (*overrides, *combination), combination))
        tick(points[-1].label)
    for name, other in others.items():
        points.append(_point(other, Path(name).stem, overrides, ()))
        tick(points[-1].label)
    return baseline, points


def _point(tree: Tree, label: str, overrides: Sequence[str], own: tuple[str, ...]) -> Point:
    try:
        resolved = resolve_tree(_copy(tree), overrides)
        return Point(label, own, run(resolved, with_changes=False).result)
    except MoesimError as error:
        return Point(label, own, None, str(error))


def _copy(tree: Tree) -> Tree:
    return tree.merged(Tree({}))
