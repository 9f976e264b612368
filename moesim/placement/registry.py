"""The kind of policy that finds placements, and the shape of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from moesim.placement.placed import Floats, Placement
from moesim.placement.problem import Problem
from moesim.registry import Registry


@dataclass(frozen=True, slots=True)
class Own:
    """What a method optimises, where that is not the largest rank load.

    Attributes
    ----------
    name, unit : str
        Of the quantity.
    value : float
        What was reached on the traffic that the method saw.
    bound : float, optional
        No placement is better than this, if anything is proven.
    bound_name : str
        How the bound was found.
    higher_is_better : bool
    """

    name: str
    unit: str
    value: float
    bound: float | None = None
    bound_name: str = ""
    higher_is_better: bool = False

    @property
    def gap_fraction(self) -> float | None:
        """How much better any placement could at most be, over the value reached; None without bound. [-]"""
        if self.bound is None:
            return None
        if self.value == self.bound:
            return 0.0
        distance = self.bound - self.value if self.higher_is_better else self.value - self.bound
        return distance / abs(self.value) if self.value else float("inf")


@dataclass(frozen=True, eq=False)
class Solution:
    """A placement and what its method can say about it.

    Attributes
    ----------
    placement : Placement
        The answer.
    lower_bound : ndarray of float64, ``(layers,)``, optional
        Largest rank load that no placement of the layer with the same split rule undercuts, as
        proven by this method. [tokens]
    is_optimal : bool
        True when every layer is proven optimal within the tolerance that the method was given.
    notes : tuple of str
        Remarks for the reader: limits that struck, layers left open.
    own : Own, optional
        What the method optimises beside or instead of the largest rank load.
    """

    placement: Placement
    lower_bound: Floats | None = None
    is_optimal: bool = False
    notes: tuple[str, ...] = ()
    own: Own | None = None

    @property
    def split_rule(self) -> Literal["even", "solved"]:
        """How tokens go over copies: evenly, or by the shares in the placement."""
        return "even" if self.placement.split is None else "solved"


class Method(Protocol):
    """A way to find placements; its dataclass fields are its parameters.

    Attributes
    ----------
    needs : tuple of str
        Optional parts of the problem that it cannot do without; none unless a method says so.
    """

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Placement with exactly the slots of ``problem``."""
        ...


def needs_of(method: Method) -> tuple[str, ...]:
    """Optional parts of the problem that a method works on."""
    found: tuple[str, ...] = getattr(method, "needs", ())
    return found


placement_methods: Registry[Method] = Registry("placement", "moesim.placement.methods")
