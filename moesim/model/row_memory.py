"""A memory of rows in the place of a feed-forward part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moesim.model.spec import DenseFfn


@dataclass(frozen=True, slots=True)
class MemoryFfn:
    """Memory of rows found by product keys, perhaps beside a dense part (UltraMemV2, arXiv:2508.18756).

    A token is projected to a query of two halves; each half is compared with ``keys`` keys; the best
    ``rows`` of the ``keys`` squared rows are gathered, weighted by what the token gives for their first
    ``pre_value_dim`` numbers, summed over the other ``value_dim`` and projected back.

    Attributes
    ----------
    keys, key_dim : int
        Keys along each of two axes, and their width. [-]
    rows : int
        Rows that a token gathers. [-]
    value_dim, pre_value_dim : int
        Width of what is summed, and of what is compared with the token. [-]
    beside : DenseFfn or None
        Dense part that every token passes too.
    """

    keys: int
    key_dim: int
    rows: int
    value_dim: int
    pre_value_dim: int = 0
    beside: DenseFfn | None = None

    @property
    def row_size(self) -> int:
        """Numbers of a row. [-]"""
        return self.value_dim + self.pre_value_dim

    def common_parameters(self, hidden: int) -> int:
        """Everything but the rows. [-]"""
        query = 2 * self.key_dim * (hidden + self.keys)
        beside = self.beside.parameters(hidden) if self.beside else 0
        return query + self.row_size * hidden + beside

    def parameters(self, hidden: int) -> int:
        """Everything. [-]"""
        return self.common_parameters(hidden) + self.keys**2 * self.row_size

    def active_parameters(self, hidden: int) -> int:
        """What one token reads. [-]"""
        return self.common_parameters(hidden) + self.rows * self.row_size
