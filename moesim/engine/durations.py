"""Durations as integer picoseconds: the door between seconds and the engine's clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Part, Program, parts_of
from moesim.units import PS_PER_S

Picoseconds: TypeAlias = NDArray[np.int64]
Errors: TypeAlias = Mapping[str, NDArray[np.float64]]

TOTAL_PS_MAX = 2**62
"""Largest sum of all durations of a program, a factor two below what int64 holds (53 days). [ps]"""


@dataclass(frozen=True, slots=True, eq=False)
class Durations:
    """Duration of every instruction, sample and rank, each row as small as broadcasting allows.

    Attributes
    ----------
    num_samples : int
        Length of the sample axis.
    rows : tuple of ndarray, ``(num_samples or 1, num_ranks or 1)``
        One an instruction; values of ranks that do not take part mean nothing. [ps]
    """

    num_samples: int
    rows: tuple[Picoseconds, ...]

    @classmethod
    def from_rows(cls, rows: Sequence[Picoseconds]) -> Durations:
        """Durations of the given rows [ps], ``(num_samples or 1, num_ranks or 1)`` each.

        Raises
        ------
        ValueError
            If a row is not two-dimensional int64, is negative, if the rows disagree about the number of
            samples, or if their sum leaves the range of the clock.
        """
        lengths = {len(row) for row in rows if row.ndim == 2 and row.dtype == np.int64}
        wrong = [i for i, row in enumerate(rows) if row.ndim != 2 or row.dtype != np.int64]
        if wrong or len(lengths - {1}) > 1:
            msg = (
                f"got rows {wrong} of other shape or type and sample axes {sorted(lengths)}; "
                "accepted: int64 (num_samples or 1, num_ranks or 1) throughout"
            )
            raise ValueError(msg)
        times = Counter(id(row) for row in rows if row.size)
        distinct = {id(row): row for row in rows if row.size}.values()
        total_ps = sum(int(row.max()) * times[id(row)] for row in distinct)
        _check_range(min((int(row.min()) for row in distinct), default=0), total_ps)
        return cls(max(lengths, default=1), tuple(rows))

    @classmethod
    def from_seconds(cls, seconds: NDArray[np.float64] | Sequence[float | NDArray[np.float64]]) -> Durations:
        """Durations straight from seconds, for many loads on one compiled program.

        Parameters
        ----------
        seconds : ndarray, ``(num_instructions, num_samples, num_ranks)``, or sequence
            One entry an instruction; in a sequence each is a scalar, ``(num_ranks or 1,)`` or
            ``(num_samples or 1, num_ranks or 1)``. Instructions without duration hold 0. [s]

        Raises
        ------
        ValueError
            As :meth:`from_rows`, and if a value is not finite.
        """
        if isinstance(seconds, np.ndarray) and seconds.ndim == 3:
            rows = to_ps(seconds)
            if rows.size:
                _check_range(int(rows.min()), int(rows.max(axis=(1, 2)).sum(dtype=np.float64)))
            return cls(rows.shape[1], tuple(rows))
        return cls.from_rows([to_ps(np.atleast_2d(np.asarray(s, dtype=np.float64))) for s in seconds])

    def check_for(self, program: Program) -> None:
        """Make sure that these can be durations of ``program``.

        Raises
        ------
        ValueError
            If there is not one row an instruction, or a row has another number of ranks.
        """
        if len(self.rows) != len(program.instructions):
            msg = f"got {len(self.rows)} rows of durations for {len(program.instructions)} instructions"
            raise ValueError(msg)
        wrong = {row.shape[1] for row in self.rows} - {1, program.num_ranks}
        if wrong:
            msg = f"got durations of {min(wrong)} ranks for a program of {program.num_ranks} ranks"
            raise ValueError(msg)

    def dense(self, num_ranks: int) -> Picoseconds:
        """All durations [ps], ``(num_instructions, num_samples, num_ranks)``: for small programs."""
        shape = (self.num_samples, num_ranks)
        return np.array([np.broadcast_to(row, shape) for row in self.rows], dtype=np.int64).reshape(
            -1, *shape
        )

    def scaled(self, factor: int) -> Durations:
        """Every duration multiplied by an integer."""
        return Durations.from_rows([row * np.int64(factor) for row in self.rows])


def _check_range(lowest_ps: int, total_ps: int) -> None:
    if lowest_ps < 0:
        msg = f"got a duration of {lowest_ps} ps; accepted: >= 0"
        raise ValueError(msg)
    if total_ps > TOTAL_PS_MAX:
        msg = f"durations add up to more than {TOTAL_PS_MAX / PS_PER_S:.3g} s"
        raise ValueError(msg)


def to_ps(seconds: NDArray[np.float64]) -> Picoseconds:
    """Seconds rounded to integer picoseconds, half to even; same shape.

    Raises
    ------
    ValueError
        If a value is not finite or beyond the range of the clock.
    """
    scaled = seconds * PS_PER_S
    if scaled.size and not (scaled.max() <= TOTAL_PS_MAX and scaled.min() >= -TOTAL_PS_MAX):
        msg = f"got seconds up to {seconds.max()}; accepted: finite, below {TOTAL_PS_MAX / PS_PER_S:.3g}"
        raise ValueError(msg)
    rounded = np.empty(scaled.shape, dtype=np.int64)
    np.rint(scaled, out=rounded, casting="unsafe")
    return rounded


def to_seconds(picoseconds: Picoseconds) -> NDArray[np.float64]:
    """Picoseconds as seconds [s], same shape."""
    return picoseconds / PS_PER_S


def error_factor(family: str, sigma: float, errors: Errors | None) -> NDArray[np.float64] | None:
    """Factor ``exp(sigma * z)`` of a family in each sample, ``(num_samples,)``; None for exactly one.

    Raises
    ------
    ValueError
        If ``errors`` does not hold the family although its ``sigma`` is positive.
    """
    if errors is None or sigma == 0:
        return None
    if family not in errors:
        msg = f"no errors drawn for family {family!r}; drawn: {sorted(errors)}"
        raise ValueError(msg)
    return np.exp(sigma * errors[family])


def part_ps(part: Part, errors: Errors | None = None) -> Picoseconds:
    """Duration of one part [ps], ``(num_samples or 1, num_ranks or 1)``.

    Those of the parts of an instruction add up exactly to its own.

    Parameters
    ----------
    part : Part
        The operation.
    errors : mapping of str to ndarray, ``(num_samples,)``, optional
        Standard-normal draw of each family (:func:`moesim.evidence.draw_errors`).
    """
    return _part_ps(part, error_factor(part.estimate.family, part.estimate.sigma, errors))


def _part_ps(part: Part, factor: NDArray[np.float64] | None) -> Picoseconds:
    row = np.asarray(part.estimate.seconds, dtype=np.float64).reshape(1, -1)
    return to_ps(row if factor is None else row * factor[:, np.newaxis])


def durations_ps(program: Program, errors: Errors | None = None) -> Durations:
    """Durations of a checked program: each part rounded to picoseconds, then summed.

    Parameters
    ----------
    program : Program
        What is to be executed.
    errors : mapping of str to ndarray, ``(num_samples,)``, optional
        Standard-normal draws; a part lasts ``seconds * exp(sigma * z[family])``. Without, one sample.

    Raises
    ------
    ValueError
        If a family has no draw, the draws differ in length, or durations leave the range of the clock.
    """
    lengths = {len(draw) for draw in errors.values()} if errors else {1}
    if len(lengths) != 1:
        msg = f"got draws of lengths {sorted(lengths)}; accepted: one length"
        raise ValueError(msg)
    factors: dict[tuple[str, float], NDArray[np.float64] | None] = {}
    rows: list[Picoseconds] = []
    known: dict[int, Picoseconds] = {}
    for instruction in program.instructions:
        if id(instruction) in known:  # microbatches share their instructions
            rows.append(known[id(instruction)])
            continue
        total = np.zeros((1, 1), dtype=np.int64)
        for part in parts_of(instruction):
            key = (part.estimate.family, part.estimate.sigma)
            if key not in factors:
                factors[key] = error_factor(*key, errors)
            total = total + _part_ps(part, factors[key])
        known[id(instruction)] = total
        rows.append(total)
    durations = Durations.from_rows(rows)
    return Durations(lengths.pop(), durations.rows)
