"""What a placement method is asked, and what it answers.

A :class:`Problem` is traffic and slots, a :class:`Placement` says which expert every slot holds.
Both check themselves; neither knows how a placement is found or judged.
"""

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
MAX_LISTED = 10
"""Problems of one kind that are told one by one; the rest is counted."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Problem:
    """Experts to be placed on ranks, layer by layer.

    Every rank of every layer has the same number of slots, every slot holds one expert, and every
    expert needs at least one slot.

    Attributes
    ----------
    loads : ndarray of float64, ``(layers, experts)``
        Traffic that the placement may look at. Read-only. [tokens]
    num_ranks : int
        Expert-parallel ranks. [-]
    slots_per_rank : int
        Experts that a rank holds in each layer. [-]
    ranks_per_node : int, optional
        Consecutive ranks that share a node; None when nodes do not matter. [-]
    num_groups : int, optional
        Equal groups of consecutive experts that a group-limited router keeps together. [-]
    batch_loads : ndarray of float64, ``(batches, layers, experts)``, optional
        The same traffic cut into batches, for methods that look at its scatter. Read-only. [tokens]

    Raises
    ------
    InputError
        Every contradiction at once.
    """

    loads: Floats
    num_ranks: int
    slots_per_rank: int
    ranks_per_node: int | None = None
    num_groups: int | None = None
    batch_loads: Floats | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "loads", _frozen(self.loads, np.float64))
        if self.batch_loads is not None:
            object.__setattr__(self, "batch_loads", _frozen(self.batch_loads, np.float64))
        problems = _load_problems("loads", self.loads, 2) or _slot_problems(self)
        if self.batch_loads is not None and not problems:
            problems += _load_problems("batch_loads", self.batch_loads, 3)
            if not problems and self.batch_loads.shape[1:] != self.loads.shape:
                message = f"got shape {self.batch_loads.shape}; accepted: (batches, *{self.loads.shape})"
                problems.append(errors.Problem("batch_loads", message))
        if problems:
            raise InputError(problems, source="placement problem")

    @classmethod
    def with_redundancy(
        cls, loads: ArrayLike, num_ranks: int, redundant_experts: int = 0, **more: Any
    ) -> Problem:
        """Problem with ``redundant_experts`` replica slots in each layer, over all ranks.

        Raises
        ------
        InputError
            Experts and replicas together do not fill equal ranks.
        """
        loads = np.asarray(loads, np.float64)
        experts = int(loads.shape[-1]) if loads.ndim else 0
        if num_ranks < 1 or redundant_experts < 0:
            return cls(loads, num_ranks, 1 if redundant_experts >= 0 else 0, **more)
        slots = experts + redundant_experts
        if slots % num_ranks:
            below, above = (
                (slots // num_ranks) * num_ranks - experts,
                -(-slots // num_ranks) * num_ranks - experts,
            )
            accepted = ", ".join(str(n) for n in (below, above) if n >= 0)
            message = (
                f"got {redundant_experts}: {experts} experts and {redundant_experts} replicas "
                f"do not fill {num_ranks} equal ranks; nearest accepted: {accepted}"
            )
            raise InputError([errors.Problem("redundant_experts", message)])
        return cls(loads, num_ranks, slots // num_ranks, **more)

    @property
    def num_layers(self) -> int:
        """Layers, placed independently. [-]"""
        return int(self.loads.shape[0])

    @property
    def num_experts(self) -> int:
        """Logical experts of a layer. [-]"""
        return int(self.loads.shape[1])

    @property
    def num_slots(self) -> int:
        """Physical slots of a layer over all ranks. [-]"""
        return self.num_ranks * self.slots_per_rank

    @property
    def num_replicas(self) -> int:
        """Slots beyond one for each expert. [-]"""
        return self.num_slots - self.num_experts

    @property
    def num_nodes(self) -> int:
        """Nodes of ``ranks_per_node`` ranks, 1 when they do not matter. [-]"""
        return 1 if self.ranks_per_node is None else self.num_ranks // self.ranks_per_node


@dataclass(frozen=True, eq=False)
class Placement:
    """The expert in every slot, and optionally how an expert's tokens are split over its copies.

    Slot ``s`` belongs to rank ``s // slots_per_rank``. Slots of a rank are kept sorted by expert, so
    two placements that differ only by the order inside ranks are equal.

    Attributes
    ----------
    physical_to_logical : ndarray of int64, ``(layers, slots)``
        Expert held by each slot. Read-only.
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
        order = np.argsort(by_rank, axis=-1, kind="stable")
        ordered = np.take_along_axis(by_rank, order, axis=-1).reshape(layers, slots)
        object.__setattr__(self, "physical_to_logical", _frozen(ordered, np.int64))
        if self.split is not None:
            split = np.asarray(self.split, np.float64)
            if split.shape != experts.shape:
                raise InputError.at("split", split.shape, f"the shape {experts.shape} of the slots")
            split = np.take_along_axis(split.reshape(by_rank.shape), order, axis=-1).reshape(layers, slots)
            object.__setattr__(self, "split", _frozen(split, np.float64))
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
        """Slots of a rank in each layer. [-]"""
        return self.num_slots // self.num_ranks

    @property
    def rank_of_slot(self) -> Ints:
        """Rank that owns each slot, ``(slots,)``."""
        return np.arange(self.num_slots, dtype=np.int64) // self.slots_per_rank

    @cached_property
    def copies(self) -> Ints:
        """Slots that hold each expert, ``(layers, experts)``. [-]"""
        cells = np.arange(self.num_layers)[:, None] * self.num_experts + self.physical_to_logical
        count = np.bincount(cells.ravel(), minlength=self.num_layers * self.num_experts)
        return count.reshape(self.num_layers, self.num_experts).astype(np.int64)

    @cached_property
    def slot_share(self) -> Floats:
        """Share of its expert's tokens that each slot serves, ``(layers, slots)``. [-]"""
        if self.split is not None:
            return self.split
        copies = np.take_along_axis(self.copies, self.physical_to_logical, axis=1)
        return 1.0 / copies.astype(np.float64)

    @cached_property
    def rank_share(self) -> Floats:
        """Share of each expert's tokens served by each rank, ``(layers, experts, ranks)``.

        Sums to one over ranks. Tokens of rank ``g`` are ``loads[l] @ rank_share[l][:, g]``. [-]
        """
        shape = (self.num_layers, self.num_experts, self.num_ranks)
        cells = np.arange(self.num_layers)[:, None] * self.num_experts + self.physical_to_logical
        cells = cells * self.num_ranks + self.rank_of_slot
        size = int(np.prod(shape))
        shares = np.bincount(cells.ravel(), weights=self.slot_share.ravel(), minlength=size)
        return np.asarray(shares, np.float64).reshape(shape)

    @cached_property
    def resident(self) -> NDArray[np.bool_]:
        """Whether a rank holds an expert, ``(layers, experts, ranks)``."""
        held = np.zeros((self.num_layers, self.num_experts, self.num_ranks), np.bool_)
        held[np.arange(self.num_layers)[:, None], self.physical_to_logical, self.rank_of_slot] = True
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


def _frozen(values: ArrayLike, dtype: type[np.generic]) -> NDArray[Any]:
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


def _load_problems(field: str, loads: Floats, ndim: int) -> list[errors.Problem]:
    if loads.ndim != ndim or 0 in loads.shape:
        axes = "(layers, experts)" if ndim == 2 else "(batches, layers, experts)"
        return [errors.Problem(field, f"got shape {loads.shape}; accepted: {axes}, none of them 0")]
    wrong = np.argwhere(~(np.isfinite(loads) & (loads >= 0)))
    return _listed(
        [
            errors.Problem(
                f"{field}[{', '.join(map(str, at))}]",
                f"got {loads[tuple(at)]}; accepted: a finite number >= 0 [tokens]",
            )
            for at in wrong[: MAX_LISTED + 1]
        ],
        len(wrong),
    )


def _slot_problems(problem: Problem) -> list[errors.Problem]:
    ranks, slots, experts = problem.num_ranks, problem.slots_per_rank, problem.num_experts
    found = [
        errors.Problem(name, f"got {value!r}; accepted: a whole number >= 1")
        for name, value in (("num_ranks", ranks), ("slots_per_rank", slots))
        if value < 1
    ]
    if not found and ranks * slots < experts:
        message = (
            f"got {slots}: {ranks} ranks hold {ranks * slots} experts, but a layer has {experts}; "
            f"accepted: at least {-(-experts // ranks)}"
        )
        found.append(errors.Problem("slots_per_rank", message))
    if not found and slots > experts:
        message = (
            f"got {slots} on every one of {ranks} ranks; accepted: at most the {experts} experts of a layer"
        )
        found.append(errors.Problem("slots_per_rank", message))
    if problem.ranks_per_node is not None and (problem.ranks_per_node < 1 or ranks % problem.ranks_per_node):
        message = f"got {problem.ranks_per_node}; accepted: a divisor of the {ranks} ranks"
        found.append(errors.Problem("ranks_per_node", message))
    if problem.num_groups is not None and (problem.num_groups < 1 or experts % problem.num_groups):
        message = f"got {problem.num_groups}; accepted: a divisor of the {experts} experts"
        found.append(errors.Problem("num_groups", message))
    return found


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
    wrong = np.argwhere((experts < 0) | (experts >= num_experts))
    accepted = f"an expert 0 to {num_experts - 1}"
    return _listed(
        [
            errors.Problem(f"{field}[{layer}, {slot}]", f"got {experts[layer, slot]}; accepted: {accepted}")
            for layer, slot in wrong[: MAX_LISTED + 1]
        ],
        len(wrong),
    )


def _expert_problems(placement: Placement) -> list[errors.Problem]:
    """Experts without slot, and shares that are negative or do not sum to one."""
    missing = np.argwhere(placement.copies == 0)
    found = _listed(
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
        return _listed(found, len(bad))
    sums = placement.rank_share.sum(axis=-1)
    off = np.argwhere(~(np.abs(sums - 1) <= SHARE_TOLERANCE))
    return _listed(
        [
            errors.Problem(
                "split", f"shares of layer {layer} expert {expert} sum to {sums[layer, expert]:.9g}, not 1"
            )
            for layer, expert in off[: MAX_LISTED + 1]
        ],
        len(off),
    )


def _listed(problems: Sequence[errors.Problem], total: int) -> list[errors.Problem]:
    """The first problems, and how many more there are."""
    shown = list(problems[:MAX_LISTED])
    if total > MAX_LISTED:
        shown.append(errors.Problem("", f"and {total - MAX_LISTED} more of that kind"))
    return shown
