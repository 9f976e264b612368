r"""What a physical form leaves over, as a smooth function of the shape and of the form's own regime.

.. math::

   \ln \frac{T_\text{measured}}{T_\text{form}} \approx w \Bigl[ c_0 + \sum_i f_i(v_i)
       + \sum_{i<j} \sum_{a,b} q_{ij}^{ab}\, \phi_a(u_i)\, \phi_b(u_j) \Bigr]

with :math:`v_i` the logarithms of columns, of the form's time and of its memory side over its compute
side, clipped to what was seen; :math:`f_i` piecewise linear on :data:`NODES` equidistant nodes;
:math:`u_i \in [-1, 1]` the position in the range, :math:`\phi_1(u) = u`, :math:`\phi_2(u) = 2|u| - 1`.
The weight :math:`w` is 1 up to the largest work seen (the longer of the memory and the compute side) and
fades to 0 at :data:`FADE` times that: the physical form extrapolates, a smooth function does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.kernels.forms.base import Parts

NODES = 9
FADE = 16.0
"""Of 4, 16 and never, what predicts the largest fifth of GEMMs best after a fit of the rest."""

MOST_SIDED = 50.0
"""A kernel is as memory-bound (or compute-bound) as it gets when one side is this many times the other."""

DECIMALS = 4
"""Coefficients are kept to a hundredth of a percent of time."""

TIME, SIDE = "seconds", "memory_over_compute"
"""Names of the two coordinates that come from the form, beside the columns."""

WORK = "work_seconds"
"""Longer of the form's two sides: how large a row is. [s]"""

Coordinates = Mapping[str, Any]
Ranges = Mapping[str, tuple[float, float]]

_GRID = np.arange(NODES, dtype=np.float64)


@dataclass(frozen=True)
class Correction:
    """A fitted correction.

    Attributes
    ----------
    offset : float
        [ln]
    largest_s : float
        Largest work seen. [s]
    ranges : dict
        ``{coordinate: (least, most)}`` seen, in the order of the coordinates. [of the coordinate]
    mains : dict
        ``{coordinate: (NODES,)}`` values of the piecewise linear function. [ln]
    pairs : dict
        ``{"a b": (4,)}`` weights of the products of the bends of two coordinates. [ln]
    """

    offset: float
    largest_s: float
    ranges: Ranges
    mains: Mapping[str, tuple[float, ...]]
    pairs: Mapping[str, tuple[float, ...]]

    def log(self, found: Coordinates) -> Any:
        """ln(measured / form) by the formula of this module; coordinates broadcast."""
        places = {n: position(span, found[n]) for n, span in self.ranges.items()}
        total: Any = self.offset
        for name, values in self.mains.items():
            total = total + np.interp(places[name], _GRID, values)
        bends = {name: bends_of(place) for name, place in places.items()}
        for pair, weights in self.pairs.items():
            left, _, right = pair.partition(" ")
            for (a, b), weight in zip(product(bends[left], bends[right]), weights, strict=True):
                total = total + weight * (a * b)
        beyond = np.log(np.maximum(found[WORK] / self.largest_s, 1.0))
        return total * np.maximum(0.0, 1.0 - beyond / np.log(FADE))


def coordinates(columns: Coordinates, parts: Parts) -> dict[str, Any]:
    """Columns of a table with the two coordinates that come from the form, and the work."""
    memory_s = np.maximum(parts.memory_s, 1e-30)  # a form without one of its sides is wholly on the other
    compute_s = np.maximum(parts.compute_s, 1e-30)
    side = np.clip(memory_s / compute_s, 1 / MOST_SIDED, MOST_SIDED)
    return {**columns, TIME: np.asarray(parts.seconds), SIDE: side, WORK: np.maximum(memory_s, compute_s)}


def position(span: tuple[float, float], value: Any) -> Any:
    """Place in a range in node widths, 0 to ``NODES - 1``, by the logarithm."""
    least, most = span
    return np.log(np.clip(value, least, most) / least) * ((NODES - 1) / np.log(most / least))


def bends_of(place: Any) -> tuple[Any, Any]:
    """The two functions of a coordinate that enter products."""
    u = place * (2 / (NODES - 1)) - 1
    return u, 2 * np.abs(u) - 1


def basis(ranges: Ranges, found: Coordinates) -> NDArray[np.float64]:
    """Matrix whose product with the coefficients is the sum in the brackets.

    ``(num_rows, 1 + NODES c + 2 c (c - 1))``: offset, then the nodes of each coordinate, then the four
    products of each pair.
    """
    places = {n: position(span, found[n]) for n, span in ranges.items()}
    count = len(next(iter(places.values())))
    parts = [np.ones((count, 1))]
    parts += [np.maximum(0.0, 1 - np.abs(place[:, None] - _GRID)) for place in places.values()]
    bends = {name: bends_of(place) for name, place in places.items()}
    for left, right in combinations(ranges, 2):
        parts.append(np.stack([a * b for a, b in product(bends[left], bends[right])], axis=1))
    return np.hstack(parts)


def from_coefficients(ranges: Ranges, largest_s: float, values: NDArray[np.float64]) -> Correction:
    """Correction of a solution for :func:`basis`, or for its columns before the pairs."""
    names = list(ranges)
    numbers = [round(float(value), DECIMALS) for value in values]
    rest = numbers[1 + len(names) * NODES :]
    return Correction(
        numbers[0],
        largest_s,
        dict(ranges),
        {n: tuple(numbers[1 + i * NODES : 1 + (i + 1) * NODES]) for i, n in enumerate(names)},
        {
            f"{left} {right}": tuple(rest[4 * i : 4 * i + 4])
            for i, (left, right) in enumerate(combinations(names, 2) if rest else ())
        },
    )
