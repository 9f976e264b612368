"""Published claims beside ours: one row a claim, each with its source and a tolerance set beforehand.

A set is a module of this room with ``claims(seed, progress)``; its published numbers live in
``published/<set>.yaml``, apart from the code that simulates them. A claim that is missed stays in
its set and shows as missed.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, did_you_mean
from moesim.files import Tree, read_tree

PUBLISHED = Path(__file__).parent / "published"

Progress = Callable[[str], None]
"""Called with the name of what is simulated next."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One published number and ours.

    Attributes
    ----------
    name, source, unit, note : str
        What is claimed, where, in which unit, and why ours differs.
    published, simulated : float
    tolerance : float
        Accepted distance: a fraction of ``published``, or in ``unit`` where ``absolute``.
    absolute : bool
    group : str
        What it is summed up with; empty: nothing.
    """

    name: str
    source: str
    unit: str
    published: float
    simulated: float
    tolerance: float
    absolute: bool = False
    note: str = ""
    group: str = ""

    @property
    def error(self) -> float:
        """Signed distance: relative, or in the claim's unit where ``absolute``."""
        distance = self.simulated - self.published
        return distance if self.absolute else distance / self.published

    @property
    def within(self) -> bool:
        """Whether ours lies within the tolerance; a NaN does not."""
        return abs(self.error) <= self.tolerance


def claim_sets() -> list[str]:
    """Names of the sets: the modules beside this one whose published numbers are shipped."""
    found = {module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])}
    return sorted(found & {path.stem for path in PUBLISHED.glob("*.yaml")})


def asks(name: str) -> str:
    """What a set compares: the first line of its module, which is read and not run."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


def published(name: str) -> Tree:
    """Published numbers of a set, with the line of each for errors."""
    return read_tree(PUBLISHED / f"{name}.yaml")


def claims_of(name: str, *, seed: int = 0, progress: Progress | None = None) -> Sequence[Claim]:
    """Every claim of a set, simulated now.

    Raises
    ------
    InputError
        No set of that name.
    """
    if name not in claim_sets():
        known = ", ".join(claim_sets())
        raise InputError.at("SET", name, f"{known}{did_you_mean(name, claim_sets())}")
    module = importlib.import_module(f"moesim.validate.{name}")
    found: Sequence[Claim] = module.claims(seed=seed, progress=progress)
    return found


def plain(claims: Sequence[Claim]) -> list[dict[str, Any]]:
    """Rows of the JSON document; what could not be simulated is null."""
    return [
        {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in row.items()}
        for row in (asdict(claim) | {"error": claim.error, "within": claim.within} for claim in claims)
    ]


def summary(claims: Sequence[Claim]) -> dict[str, Any]:
    """Counts, and the median error over the relative claims."""
    names = dict.fromkeys(claim.group for claim in claims if claim.group)
    found = _counts(claims)
    if names:
        found["groups"] = [
            {"name": name}
            | _counts([claim for claim in claims if claim.group == name])
            | {"median_ape_without": _counts([c for c in claims if _beside(c.group, name)])["median_ape"]}
            for name in names
        ]
    return found


def _beside(group: str, name: str) -> bool:
    """Whether a group is another one of the same kind, which its first word names."""
    return group != name and group.split()[:1] == name.split()[:1]


def _counts(claims: Sequence[Claim]) -> dict[str, Any]:
    """How many, and the errors of those that were simulated and are relative."""
    relative = np.array([abs(claim.error) for claim in claims if not claim.absolute])
    known = relative[~np.isnan(relative)]
    return {
        "n": len(claims),
        "n_within": sum(claim.within for claim in claims),
        "median_ape": float(np.median(known)) if known.size else None,
    }
