"""The kind of policy that finds placements, and the shape of its answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from moesim.placement.problem import Floats, Placement, Problem
from moesim.registry import Registry


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
    """

    placement: Placement
    lower_bound: Floats | None = None
    is_optimal: bool = False
    notes: tuple[str, ...] = ()

    @property
    def split_rule(self) -> Literal["even", "solved"]:
        """How tokens go over copies: evenly, or by the shares in the placement."""
        return "even" if self.placement.split is None else "solved"


class Method(Protocol):
    """A way to find placements; its dataclass fields are its parameters."""

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Placement with exactly the slots of ``problem``."""
        ...


placement_methods: Registry[Method] = Registry("placement", "moesim.placement.methods")
