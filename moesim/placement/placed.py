"""What a placement method answers: the expert in every slot, which checks itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim import errors
from moesim.errors import InputError

SHARE_TOLERANCE = 1e-8
"""How far the shares of an expert's copies may be from summing to one."""
EMPTY = -1
"""Marks a slot without expert, where ranks or layers have fewer slots than the widest."""
MAX_LISTED = 10
"""Problems of one kind that are told one by one; the rest is counted."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Placement:
    """The expert in every slot, and optionally how an expert's tokens are split over its copies.

    Slot ``s`` belongs to rank ``s // slots_per_rank``. Slots of a rank are kept sorted by expert,
    empty ones last, so two placements that differ only by the order inside ranks are equal.

    Attributes
    ----------
    physical_to_logical : ndarray of int64, ``(layers, slots)``
        Expert held by each slot, :data:`EMPTY` for none. Read-only.
    num_experts, num_ranks : int
        Logical experts of a layer, ranks that share them. [-]
    split : ndarray of float64, ``(layers, slots)``, optional
        Share of its expert's tokens that goes to each slot; None splits evenly over copies, as
        engines do by default. [-]

    Raises
    ------
    InputError
        Wrong shapes, an expert without slot, or shares that do not sum to one; names layer and expert.
    """

    physical_to_logical: Ints
    num_experts: int
    num_ranks: int
    split: Floats | None = None

    def __post_init__(self) -> None:
        experts = np.asarray(self.physical_to_logical)
        problems = _map_problems(experts, self.num_experts, self.num_ranks)
        if problems:
            raise InputError(problems, source="placement")
        layers, slots = experts.shape
        by_rank = experts.astype(np.int64).reshape(layers, self.num_ranks, -1)
        order = np.argsort(np.where(by_rank == EMPTY, self.num_experts, by_rank), axis=-1, kind="stable")
        ordered = np.take_along_axis(by_rank, order, axis=-1).reshape(layers, slots)
        object.__setattr__(self, "physical_to_logical", frozen(ordered, np.int64))
        if self.split is not None:
            split = np.asarray(self.split, np.float64)
            if split.shape != experts.shape:
                raise InputError.at("split", split.shape, f"the shape {experts.shape} of the slots")
            split = np.take_along_axis(split.reshape(by_rank.shape), order, axis=-1).reshape(layers, slots)
            object.__setattr__(self, "split", frozen(split, np.float64))
        problems = _expert_problems(self)
        if problems:
            raise InputError(problems, source="placement")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Placement):
            return NotImplemented
        return (
            self.num_experts == other.num_experts
            and self.num_ranks == other.num_ranks
            and np.array_equal(self.physical_to_logical, other.physical_to_logical)
            and np.array_equal(self.slot_share, other.slot_share)
        )

    __hash__ = None  # type: ignore[assignment]

    @property
    def num_layers(self) -> int:
        """Placed layers. [-]"""
        return int(self.physical_to_logical.shape[0])

    @property
    def num_slots(self) -> int:
        """Slots of a layer over all ranks. [-]"""
        return int(self.physical_to_logical.shape[1])

    @property
    def slots_per_rank(self) -> int:
        """Slots of a rank in each layer, empty ones included. [-]"""
        return self.num_slots // self.num_ranks

    @property
    def rank_slots(self) -> Ints:
        """Slots of each rank that hold an expert, ``(layers, ranks)``. [-]"""
        by_rank = self.is_held.reshape(self.num_layers, self.num_ranks, -1)
        return np.asarray(by_rank.sum(axis=-1), np.int64)

    @property
    def is_held(self) -> NDArray[np.bool_]:
        """Whether a slot holds an expert, ``(layers, slots)``."""
        return np.asarray(self.physical_to_logical != EMPTY)

    @property
    def rank_of_slot(self) -> Ints:
        """Rank that owns each slot, ``(slots,)``."""
        return np.arange(self.num_slots, dtype=np.int64) // self.slots_per_rank

    @cached_property
    def copies(self) -> Ints:
        """Slots that hold each expert, ``(layers, experts)``. [-]"""
        cells = np.arange(self.num_layers)[:, None] * self.num_experts + self.physical_to_logical
        count = np.bincount(cells[self.is_held], minlength=self.num_layers * self.num_experts)
        return count.reshape(self.num_layers, self.num_experts).astype(np.int64)

    @cached_property
    def slot_share(self) -> Floats:
        """Share of its expert's tokens that each slot serves, ``(layers, slots)``. [-]"""
        if self.split is not None:
            return self.split
        copies = np.take_along_axis(self.copies, np.maximum(self.physical_to_logical, 0), axis=1)
        return np.where(self.is_held, 1.0 / np.maximum(copies, 1), 0.0)

    @cached_property
    def rank_share(self) -> Floats:
        """Share of each expert's tokens served by each rank, ``(layers, experts, ranks)``.

        Sums to one over ranks. Tokens of rank ``g`` are ``loads[l] @ rank_share[l][:, g]``. [-]
        """
        shape = (self.num_layers, self.num_experts, self.num_ranks)
        cells = np.arange(self.num_layers)[:, None] * self.num_experts + self.physical_to_logical
        cells = cells * self.num_ranks + self.rank_of_slot
        held, size = self.is_held, int(np.prod(shape))
        shares = np.bincount(cells[held], weights=self.slot_share[held], minlength=size)
        return np.asarray(shares, np.float64).reshape(shape)

    @cached_property
    def resident(self) -> NDArray[np.bool_]:
        """Whether a rank holds an expert, ``(layers, experts, ranks)``."""
        held = np.zeros((self.num_layers, self.num_experts, self.num_ranks), np.bool_)
        layer, slot = np.nonzero(self.is_held)
        held[layer, self.physical_to_logical[layer, slot], self.rank_of_slot[slot]] = True
        return held

    def moved_experts(self, before: Placement) -> int:
        """Expert weights that some rank must load to go from ``before`` to this placement. [-]"""
        if before.resident.shape != self.resident.shape:
            raise InputError.at(
                "before",
                before.resident.shape,
                f"a placement of {self.resident.shape} layers, experts and ranks",
            )
        return int(np.count_nonzero(self.resident & ~before.resident))


def frozen(values: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    """Read-only copy."""
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


def _map_problems(experts: NDArray[Any], num_experts: int, num_ranks: int) -> list[errors.Problem]:
    field = "physical_to_logical"
    if experts.ndim != 2 or 0 in experts.shape or not np.issubdtype(experts.dtype, np.integer):
        return [
            errors.Problem(
                field, f"got {experts.dtype} {experts.shape}; accepted: whole numbers (layers, slots)"
            )
        ]
    if num_ranks < 1 or experts.shape[1] % num_ranks:
        return [
            errors.Problem(
                "num_ranks", f"got {num_ranks}; accepted: a divisor of the {experts.shape[1]} slots"
            )
        ]
    wrong = np.argwhere((experts < EMPTY) | (experts >= num_experts))
    accepted = f"an expert 0 to {num_experts - 1}, or {EMPTY} for an empty slot"
    return listed(
        [
            errors.Problem(f"{field}[{layer}, {slot}]", f"got {experts[layer, slot]}; accepted: {accepted}")
            for layer, slot in wrong[: MAX_LISTED + 1]
        ],
        len(wrong),
    )


def serving(resident: NDArray[np.bool_], shares: Floats) -> Placement:
    """Placement in which each rank has slots for what is resident there, as many on every rank.

    Parameters
    ----------
    resident : ndarray of bool, ``(layers, experts, ranks)``
        Where weights are.
    shares : ndarray of float64, ``(layers, experts, ranks)``
        Share of each expert's tokens on every rank, 0 where it is not. [-]
    """
    num_layers, num_experts, num_ranks = resident.shape
    shape = (num_layers, num_ranks, int(resident.sum(axis=1).max()))
    held, split = np.full(shape, EMPTY, np.int64), np.zeros(shape)
    for layer in range(num_layers):
        for rank in range(num_ranks):
            here = np.flatnonzero(resident[layer, :, rank])
            held[layer, rank, : here.size] = here
            split[layer, rank, : here.size] = shares[layer, here, rank]
    rows = (num_layers, -1)
    return Placement(held.reshape(rows), num_experts, num_ranks, split.reshape(rows))


def _expert_problems(placement: Placement) -> list[errors.Problem]:
    """Experts without slot, and shares that are negative or do not sum to one."""
    missing = np.argwhere(placement.copies == 0)
    found = listed(
        [
            errors.Problem("physical_to_logical", f"layer {layer} has no slot for expert {expert}")
            for layer, expert in missing[: MAX_LISTED + 1]
        ],
        len(missing),
    )
    if placement.split is None or found:
        return found
    bad = np.argwhere(~(placement.split >= 0))
    found = [
        errors.Problem(
            f"split[{layer}, {slot}]", f"got {placement.split[layer, slot]}; accepted: a share >= 0"
        )
        for layer, slot in bad[: MAX_LISTED + 1]
    ]
    if found:
        return listed(found, len(bad))
    sums = placement.rank_share.sum(axis=-1)
    off = np.argwhere(~(np.abs(sums - 1) <= SHARE_TOLERANCE))
    return listed(
        [
            errors.Problem(
                "split", f"shares of layer {layer} expert {expert} sum to {sums[layer, expert]:.9g}, not 1"
            )
            for layer, expert in off[: MAX_LISTED + 1]
        ],
        len(off),
    )


def listed(problems: Sequence[errors.Problem], total: int) -> list[errors.Problem]:
    """The first problems, and how many more there are."""
    shown = list(problems[:MAX_LISTED])
    if total > MAX_LISTED:
        shown.append(errors.Problem("", f"and {total - MAX_LISTED} more of that kind"))
    return shown
