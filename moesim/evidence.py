"""Where a duration comes from and how far it may be off.

An :class:`Estimate` is a time together with its grade and the standard deviation of its relative
error. Errors of one operation family are systematic, so a Monte-Carlo sample draws one standard
normal per family and pushes it through the whole simulation: ``seconds * exp(sigma * z[family])``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Grade: TypeAlias = Literal["measured", "interpolated", "fitted", "roofline", "assumed"]
GRADES: tuple[Grade, ...] = ("measured", "interpolated", "fitted", "roofline", "assumed")
"""From the strongest to the weakest."""

Seconds: TypeAlias = float | NDArray[np.float64]

BAND_QUANTILES = (0.10, 0.90)
"""The reported band holds 80 % of the samples."""

BAND_FRACTION = 0.8
BAND_Z = 1.2815515655446004
"""Standard normal quantile of 90 %: half-width of the 80 % band in sigmas."""

LEAST_SIGMA = 0.02


@dataclass(frozen=True, slots=True)
class Estimate:
    """A time and the evidence for it.

    Attributes
    ----------
    seconds : float or ndarray, ``(...)``
        Median estimate, usually one value a rank. [s]
    family : str
        Operations whose errors move together (``gemm``, ``moe``, ``attention``, ``all_to_all``...).
    grade : str
        One of :data:`GRADES`.
    sigma : float
        Standard deviation of the natural logarithm of true over estimated. [-]
    """

    seconds: Seconds
    family: str
    grade: Grade
    sigma: float


def draw_errors(families: Iterable[str], num_samples: int, seed: int) -> dict[str, NDArray[np.float64]]:
    """Standard-normal error of each family in each sample, ``{family: (num_samples,)}``.

    Draws are stratified: each family takes the mid-points of ``num_samples`` equally likely intervals
    in random order (Latin hypercube), so that few samples already give a band that does not lean. A
    family's draws depend on its name and the seed only: adding a family does not shift the others.
    """
    quantile = NormalDist().inv_cdf
    points = np.array([quantile((i + 0.5) / num_samples) for i in range(num_samples)])
    return {name: rng_for(seed, f"evidence/{name}").permutation(points) for name in sorted(set(families))}


def rng_for(seed: int, name: str) -> np.random.Generator:
    """Random generator of one named consumer: the same seed and name give the same stream anywhere."""
    words = np.frombuffer(name.encode().ljust(-(-len(name.encode()) // 4) * 4, b"\0"), dtype="<u4")
    return np.random.default_rng(np.random.SeedSequence([seed, *words.tolist()]))


def shares_by_grade(seconds_by_grade: Mapping[Grade, float]) -> dict[Grade, float]:
    """Fractions of the total time by grade, strongest first, absent grades left out."""
    total = sum(seconds_by_grade.values())
    return {g: seconds_by_grade[g] / total for g in GRADES if total > 0 and seconds_by_grade.get(g, 0.0) > 0}


class Score(BaseModel):
    """Errors on rows that no parameter saw.

    Attributes
    ----------
    num_rows : int
        Rows tested. [-]
    median_ape, p90_ape : float
        Quantiles of |predicted - measured| / measured. [-]
    bias : float
        Median of ln(predicted / measured). [-]
    coverage : float
        Fraction of rows inside the 80 % band. [-]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_rows: int = Field(ge=0)
    median_ape: float
    p90_ape: float
    bias: float
    coverage: float

    @classmethod
    def of(cls, error: NDArray[np.float64], sigma: NDArray[np.float64] | float) -> Score:
        """From ln(predicted / measured) of each row, ``(row,)``, and the sigma of its band."""
        ape = np.abs(np.expm1(error))
        return cls(
            num_rows=len(error),
            median_ape=float(np.median(ape)),
            p90_ape=float(np.quantile(ape, 0.9)),
            bias=float(np.median(error)),
            coverage=float(np.mean(np.abs(error) <= BAND_Z * sigma)),
        )


def covering_sigma(absolute_error: NDArray[np.float64]) -> float:
    """Sigma whose 80 % band holds 80 % of the errors, a little more when there are few."""
    few = min(BAND_FRACTION * (1 + 1 / max(len(absolute_error), 1)), 1.0)
    return max(float(np.quantile(absolute_error, few)) / BAND_Z, LEAST_SIGMA)
