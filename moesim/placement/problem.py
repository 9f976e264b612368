"""What a placement method is asked: traffic, slots, and what is known of the ranks that hold them.

A :class:`Problem` checks itself; it does not know how a placement is found or judged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from moesim import errors
from moesim.errors import InputError
from moesim.placement.placed import MAX_LISTED, Floats, Ints, Placement, frozen, listed

AXES: dict[str, tuple[str, ...]] = {
    "loads": ("layers", "experts"),
    "batch_loads": ("batches", "layers", "experts"),
    "transitions": ("layers - 1", "experts", "experts"),
    "co_activation": ("layers", "experts", "experts"),
    "rank_slots": ("layers", "ranks"),
    "speeds": ("ranks",),
    "rank_costs": ("layers", "ranks"),
    "link_costs": ("ranks", "ranks"),
}
"""Arrays of a problem and their axes."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Experts to be placed on ranks, layer by layer.

    A slot holds one expert, and every expert needs at least one slot. Ranks have the same number of
    slots in every layer unless ``rank_slots`` says otherwise.

    Attributes
    ----------
    loads : ndarray of float64, ``(layers, experts)``
        Traffic that the placement may look at. Read-only, as are all arrays. [tokens]
    num_ranks : int
        Expert-parallel ranks. [-]
    slots_per_rank : int
        Most experts that a rank holds in a layer. [-]
    ranks_per_node : int, optional
        Consecutive ranks that share a node; None when nodes do not matter. [-]
    num_groups : int, optional
        Equal groups of consecutive experts that a group-limited router keeps together. [-]
    batch_loads : ndarray of float64, ``(batches, layers, experts)``, optional
        Batches of the same traffic, for methods that look at its scatter. [tokens]
    transitions : ndarray of float64, ``(layers - 1, experts, experts)``, optional
        Tokens that chose one expert in a layer and another in the next. [tokens]
    co_activation : ndarray of float64, ``(layers, experts, experts)``, optional
        Tokens that chose both experts of a pair in one layer; the diagonal is not used. [tokens]
    rank_slots : ndarray of int64, ``(layers, ranks)``, optional
        Slots of each rank, none above ``slots_per_rank``; one row stands for all layers. [-]
    speeds : ndarray of float64, ``(ranks,)``, optional
        Expert tokens a second of each rank, in any unit; only their ratios matter. [-]
    rank_costs : ndarray of float64, ``(layers, ranks)``, optional
        Cost of bringing a token to a rank, such as mean hops from the ranks that hold tokens. [-]
    link_costs : ndarray of float64, ``(ranks, ranks)``, optional
        Cost of a token between two ranks; default 1 between different ranks. [-]
    start : Placement, optional
        Where experts are now, for methods that count what moves.
    score : callable, optional
        Seconds of a step under a placement, as a simulator sees it. [s]

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
    transitions: Floats | None = None
    co_activation: Floats | None = None
    rank_slots: Ints | None = None
    speeds: Floats | None = None
    rank_costs: Floats | None = None
    link_costs: Floats | None = None
    start: Placement | None = None
    score: Callable[[Placement], float] | None = None

    def __post_init__(self) -> None:
        if self.rank_slots is not None and np.ndim(self.rank_slots) == 1:
            rows = np.tile(self.rank_slots, (len(self.loads), 1))
            object.__setattr__(self, "rank_slots", rows)
        for name in AXES:
            if getattr(self, name) is not None:
                dtype = np.int64 if name == "rank_slots" else np.float64
                object.__setattr__(self, name, frozen(getattr(self, name), dtype))
        problems = _array_problems("loads", self.loads) or _slot_problems(self)
        if not problems:
            for name in AXES:
                problems += _shape_problems(self, name)
            problems += _rank_problems(self) if not problems else []
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

    @classmethod
    def with_rank_slots(cls, loads: ArrayLike, rank_slots: ArrayLike, **more: Any) -> Problem:
        """Problem whose ranks have ``rank_slots`` slots, ``(ranks,)`` or ``(layers, ranks)``."""
        slots = np.asarray(rank_slots, np.int64)
        if slots.ndim not in (1, 2) or not slots.size:
            raise InputError.at("rank_slots", slots.shape, "(ranks,) or (layers, ranks)")
        widest = int(slots.max())
        return cls(np.asarray(loads, np.float64), slots.shape[-1], widest, rank_slots=slots, **more)

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
        """Physical slots of a layer over all ranks, those of absent slots included. [-]"""
        return self.num_ranks * self.slots_per_rank

    @property
    def num_replicas(self) -> int:
        """Slots beyond one for each expert, in the layer that has most. [-]"""
        return int(self.capacity.sum(axis=1).max()) - self.num_experts

    @property
    def capacity(self) -> Ints:
        """Slots of each rank, ``(layers, ranks)``. [-]"""
        if self.rank_slots is not None:
            return self.rank_slots
        return np.full((self.num_layers, self.num_ranks), self.slots_per_rank, np.int64)

    @property
    def relative_speeds(self) -> Floats:
        """Speed of each rank over the mean speed, ``(ranks,)``. [-]"""
        return np.ones(self.num_ranks) if self.speeds is None else self.speeds / self.speeds.mean()

    @property
    def num_nodes(self) -> int:
        """Nodes of ``ranks_per_node`` ranks, 1 when they do not matter. [-]"""
        return 1 if self.ranks_per_node is None else self.num_ranks // self.ranks_per_node

    @property
    def distances(self) -> Floats:
        """Cost of a token between two ranks, ``(ranks, ranks)``. [-]"""
        return 1.0 - np.eye(self.num_ranks) if self.link_costs is None else self.link_costs

    def needed(self, name: str, method: str) -> Any:
        """Optional part ``name`` of the problem, which ``method`` cannot do without.

        Raises
        ------
        InputError
            It is not there.
        """
        part = getattr(self, name)
        if part is None:
            message = f"missing; method {method} works on it"
            raise InputError([errors.Problem(name, message)], source="placement problem")
        return part

    def check_equal_slots(self, method: str) -> None:
        """Refuse unequal slots, for methods that cannot fill them.

        Raises
        ------
        InputError
            Ranks or layers have different numbers of slots.
        """
        if self.rank_slots is not None and (self.rank_slots != self.slots_per_rank).any():
            least, most = int(self.rank_slots.min()), int(self.rank_slots.max())
            message = f"got {least} to {most} slots; method {method} needs as many on every rank and layer"
            raise InputError([errors.Problem("rank_slots", message)], source="placement problem")


def _array_problems(field: str, values: Floats | Ints) -> list[errors.Problem]:
    """Wrong number of axes, empty ones, or values that are no amounts."""
    if values.ndim != len(AXES[field]) or (0 in values.shape and field != "transitions"):
        accepted = f"({', '.join(AXES[field])}), none of them 0"
        return [errors.Problem(field, f"got shape {values.shape}; accepted: {accepted}")]
    least, is_open = (0, field == "speeds")
    fine = np.isfinite(values) & ((values > least) if is_open else (values >= least))
    wrong = np.argwhere(~fine)
    unit = " [tokens]" if field in ("loads", "batch_loads", "transitions", "co_activation") else ""
    return listed(
        [
            errors.Problem(
                f"{field}[{', '.join(map(str, at))}]",
                f"got {values[tuple(at)]}; accepted: a finite number {'> 0' if is_open else '>= 0'}{unit}",
            )
            for at in wrong[: MAX_LISTED + 1]
        ],
        len(wrong),
    )


def _shape_problems(problem: Problem, field: str) -> list[errors.Problem]:
    """Contradictions between an optional array and the loads."""
    values = getattr(problem, field)
    if values is None or field == "loads":
        return []
    found = _array_problems(field, values)
    sizes = {
        "layers": problem.num_layers,
        "layers - 1": problem.num_layers - 1,
        "experts": problem.num_experts,
        "ranks": problem.num_ranks,
        "batches": values.shape[0] if values.ndim else 0,
    }
    wanted = tuple(sizes[axis] for axis in AXES[field])
    if not found and values.shape != wanted:
        named = ", ".join(f"{axis} = {size}" for axis, size in zip(AXES[field], wanted, strict=True))
        found.append(errors.Problem(field, f"got shape {values.shape}; accepted: {wanted} ({named})"))
    return found


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


def _rank_problems(problem: Problem) -> list[errors.Problem]:
    """Slots that do not hold every expert, and a start of another shape."""
    found = []
    experts = problem.num_experts
    if problem.rank_slots is not None:
        if problem.rank_slots.max() > problem.slots_per_rank:
            accepted = f"at most slots_per_rank = {problem.slots_per_rank}"
            found.append(
                errors.Problem("rank_slots", f"got {problem.rank_slots.max()}; accepted: {accepted}")
            )
        short = np.flatnonzero(problem.rank_slots.sum(axis=1) < experts)
        totals = problem.rank_slots.sum(axis=1)
        found += listed(
            [
                errors.Problem(
                    f"rank_slots[{layer}]",
                    f"got {totals[layer]} slots in all; accepted: at least the {experts} experts of a layer",
                )
                for layer in short
            ],
            len(short),
        )
    if problem.start is not None:
        got = problem.start.resident.shape
        wanted = (problem.num_layers, experts, problem.num_ranks)
        if got != wanted:
            message = f"got (layers, experts, ranks) = {got}; accepted: {wanted}"
            found.append(errors.Problem("start", message))
    return found
