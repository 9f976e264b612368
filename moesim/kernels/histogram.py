"""What a grouped expert kernel needs to know of a batch: the per-expert token histogram, condensed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TILE_ROWS = (16, 32, 64, 128)
"""Tile heights offered by common grouped-GEMM kernels."""


@dataclass(frozen=True)
class ExpertLoad:
    """Histogram of one rank's experts, condensed; each array ``(...)`` over layers and ranks.

    Attributes
    ----------
    rows : ndarray
        Token-expert pairs to compute.
    touched : ndarray
        Experts with at least one row: only their weights are read.
    padded_rows : mapping
        ``{tile rows: rows after padding every expert to whole tiles}``.
    """

    rows: NDArray[np.float64]
    touched: NDArray[np.float64]
    padded_rows: Mapping[int, NDArray[np.float64]]

    @classmethod
    def of(cls, counts: NDArray[np.int64], tiles: Sequence[int] = TILE_ROWS) -> ExpertLoad:
        """Condensed ``counts[..., local expert]`` (whole tokens)."""
        counts = np.asarray(counts)
        padded = {b: (-(-counts // b) * b).sum(-1).astype(np.float64) for b in tiles}
        return cls(
            rows=counts.sum(-1).astype(np.float64),
            touched=(counts > 0).sum(-1).astype(np.float64),
            padded_rows=padded,
        )
