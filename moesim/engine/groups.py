"""Ranks and groups of ranks in the form that numpy works on fastest."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import RankIndex, RankMask

Select: TypeAlias = slice | NDArray[np.int64]
"""Ranks as a slice where possible (a view), as an index array otherwise (a copy)."""


class AnyGroups(NamedTuple):
    """Groups of no regular shape: members in group order, where groups start, and the group of each rank."""

    members: NDArray[np.int64]
    starts: NDArray[np.int64]
    group_of_rank: NDArray[np.int64]
    mask: RankMask | None


def as_select(indices: NDArray[np.int64]) -> Select:
    """The same ranks as a slice if they ascend in equal steps, else the indices themselves."""
    if len(indices) == 1:
        return slice(int(indices[0]), int(indices[0]) + 1)
    steps = np.diff(indices)
    if len(indices) and (steps == steps[0]).all() and steps[0] > 0:
        return slice(int(indices[0]), int(indices[-1]) + 1, int(steps[0]))
    return indices


def mesh_of(group: RankIndex) -> tuple[int, int, int] | None:
    """Mesh ``(outer, members, inner)`` whose middle axis runs along the groups, or None.

    Examples
    --------
    >>> mesh_of(np.array([7, 7, 3, 3])), mesh_of(np.array([0, 1, 0, 1])), mesh_of(np.array([0, 0, 1, 0]))
    ((2, 2, 1), (1, 2, 2), None)
    """
    first = np.flatnonzero(group == group[0])
    members, inner = len(first), int(first[1] - first[0])
    if len(group) % (members * inner):
        return None
    shape = (len(group) // (members * inner), members, inner)
    labels = group.reshape(shape)
    same = (labels == labels[:, :1, :]).all()
    distinct = len(np.unique(labels[:, 0, :])) == shape[0] * inner
    return shape if same and distinct else None


def any_groups(group: RankIndex) -> AnyGroups:
    """Groups of any shape; a negative label takes no part."""
    taking_part = np.flatnonzero(group >= 0)
    members = taking_part[np.argsort(group[taking_part], kind="stable")]
    _, starts, inverse = np.unique(group[members], return_index=True, return_inverse=True)
    group_of_rank = np.zeros(len(group), dtype=np.int64)
    group_of_rank[members] = inverse
    mask = None if len(members) == len(group) else group >= 0
    return AnyGroups(members, starts.astype(np.int64), group_of_rank, mask)
