"""Curves of collectives: a non-decreasing line through the sizes of each number of ranks.

A knot at every measured size, straight in bytes and seconds between two: a piece is a start and a rate, as
the protocols of a library are. Straight in the logarithms misses the bend between the two by up to 6 % where
sizes double. Datatypes are apart by a factor. Scores are counted on sizes held out: a third of the inner
sizes of every (ranks, datatype) curve at a time, the ends always fitted, for a collective is not
extrapolated. Once with the other datatype's row of that size in the fit (NCCL moves bytes, so the rows are
near), once without.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Score, covering_sigma
from moesim.network.fit.monotone import fit_monotone
from moesim.network.fit.tables import Table
from moesim.network.fit_file import CollectiveFit, RankCurve

Floats = NDArray[np.float64]

FOLDS = 3
LEAST_ROWS = 5


class _Points:
    """Rows of one collective at one number of ranks, all datatypes."""

    def __init__(self, tables: Sequence[Table], ranks: float) -> None:
        self.dtypes = [table.dtype for table in tables]
        rows = [table.columns["num_ranks"] == ranks for table in tables]
        sizes = [t.columns["payload_bytes"][own] for t, own in zip(tables, rows, strict=True)]
        self.payload = np.concatenate(sizes)
        self.y = np.log(np.concatenate([t.seconds[own] for t, own in zip(tables, rows, strict=True)]))
        self.x = np.log(self.payload)
        self.group = np.repeat(np.arange(len(tables)), [len(s) for s in sizes])
        self.offsets = (self.group[:, None] == np.arange(1, len(tables))).astype(np.float64)
        # position of each row's size among all sizes: what the folds are cut by
        self.sizes, self.place = np.unique(self.payload, return_inverse=True)

    def fit(self, own: NDArray[np.bool_]) -> tuple[Floats, Floats, Floats]:
        """Sizes of the knots, ln of the seconds there, and ln of the factor of each further datatype."""
        knots = np.unique(self.payload[own])
        return knots, *fit_monotone(self.x[own], self.y[own], np.log(knots), self.offsets[own])

    def predicted(self, fitted: tuple[Floats, Floats, Floats], own: NDArray[np.bool_]) -> Floats:
        knots, values, shifts = fitted
        line = np.log(np.interp(self.payload[own], knots, np.exp(values)))
        return np.asarray(line + self.offsets[own] @ shifts)

    def left_out(self, *, by_size: bool) -> tuple[NDArray[np.bool_], Floats]:
        """Inner rows and ln(predicted / measured) of each from a fit that did not see it."""
        inner = (self.payload > self.sizes[0]) & (self.payload < self.sizes[-1])
        phase = self.place if by_size else self.place + self.group
        error = np.zeros(len(self.x))
        for fold in range(FOLDS):
            test = inner & (phase % FOLDS == fold)
            if test.any():
                error[test] = self.predicted(self.fit(~test), test) - self.y[test]
        return inner, error[inner]


def fit_collectives(tables: Iterable[Table]) -> list[CollectiveFit]:
    """One fit for each collective of each library."""
    groups: dict[tuple[str, str], list[Table]] = {}
    for table in tables:
        groups.setdefault((table.family, table.source), []).append(table)
    return [
        fit for (family, source), group in groups.items() if (fit := _fit(family, source, group)) is not None
    ]


def _fit(collective: str, library: str, tables: list[Table]) -> CollectiveFit | None:
    curves, size, errors, widths, strict = [], [], [], [], []
    for ranks in np.unique(np.concatenate([t.columns["num_ranks"] for t in tables])):
        points = _Points(tables, float(ranks))
        if len(points.x) < LEAST_ROWS:
            continue
        knots, values, shifts = points.fit(np.ones(len(points.x), dtype=bool))
        inner, error = points.left_out(by_size=False)
        _, left_out = points.left_out(by_size=True)
        sigma = covering_sigma(np.abs(left_out))
        curves.append(
            RankCurve(
                num_ranks=int(ranks),
                payload_bytes=tuple(knots),
                seconds=tuple(np.exp(values)),
                dtype_factors=dict(zip(points.dtypes, [1.0, *np.exp(shifts)], strict=True)),
                sigma=sigma,
            )
        )
        size.append(points.payload[inner])
        errors.append(error)
        strict.append(left_out)
        widths.append(np.full(len(error), sigma))
    if not curves:
        return None
    sizes, error, width, out = (np.concatenate(parts) for parts in (size, errors, widths, strict))
    return CollectiveFit(
        collective=collective,
        library=library,
        curves=tuple(curves),
        num_rows=sum(table.num_rows for table in tables),
        held_out=Score.of(error, width),
        sizes_left_out=Score.of(out, width),
        decades=_by_decade(sizes, error, width),
        decades_left_out=_by_decade(sizes, out, width),
        evidence="fitted: " + tables[0].evidence,
    )


def left_out_rows(tables: Iterable[Table]) -> Iterator[tuple[str, str, float, float]]:
    """Library, split, payload and ln(predicted / measured) of every row while its size was held out."""
    groups: dict[tuple[str, str], list[Table]] = {}
    for table in tables:
        groups.setdefault((table.family, table.source), []).append(table)
    for (_, library), group in groups.items():
        for ranks in np.unique(np.concatenate([t.columns["num_ranks"] for t in group])):
            points = _Points(group, float(ranks))
            if len(points.x) < LEAST_ROWS:
                continue
            for split, by_size in (("sizes", False), ("sizes of all datatypes", True)):
                inner, error = points.left_out(by_size=by_size)
                for size, value in zip(points.payload[inner].tolist(), error.tolist(), strict=True):
                    yield library, split, size, value


def _by_decade(sizes: Floats, error: Floats, width: Floats) -> dict[str, Score]:
    decade = np.floor(np.log10(sizes)).astype(int)
    return {
        f"1e{power}": Score.of(error[decade == power], width[decade == power]) for power in np.unique(decade)
    }
