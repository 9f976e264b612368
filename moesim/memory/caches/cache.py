"""The mechanism of a cache: look up together, load what is missing, evict what is worth least."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.memory.caches.ranking import CachePolicy, Ids, Rows
from moesim.memory.demand import Demand

_NEVER = np.inf


class ExpertCache:
    """Slots for experts in every row (a layer, or one pool of all layers).

    The experts of a pass are looked up together. Those present are hits and stay; the missing ones
    take the slots of the experts worth least, the best of them first if there are fewer slots.

    Parameters
    ----------
    policy : CachePolicy
        How experts are ranked.
    demand : Demand
        What will be asked for.
    slots : ndarray of int64, ``(rows,)``
        Slots of each row. [experts]
    rng : numpy.random.Generator
        For policies that draw.
    begin : ndarray of bool, ``(rows, experts)``, optional
        What is held at the start where the policy does not say; nothing by default.
    """

    def __init__(
        self,
        policy: CachePolicy,
        demand: Demand,
        slots: NDArray[np.int64],
        rng: np.random.Generator,
        begin: NDArray[np.bool_] | None = None,
    ) -> None:
        self.ranking = policy.ranking(demand, rng)
        self.bypasses = policy.bypasses
        rows, experts = demand.num_layers, demand.num_experts
        self.empty = experts
        self.slots = np.minimum(slots, experts)
        width = max(1, int(self.slots.max()))
        self.contents = np.full((rows, width), experts, np.int32)
        self.usable = np.arange(width) < self.slots[:, None]
        self.slot_of = np.full((rows, experts + 1), -1, np.int32)
        self.all_rows = np.arange(rows)[:, None]
        held = policy.initial(demand, self.slots)
        held = begin if held is None else held
        if held is not None:
            for row in range(rows):
                found = np.flatnonzero(held[row])[: self.slots[row]]
                self.contents[row, : found.size] = found
                self.slot_of[row, found] = np.arange(found.size)
                self.ranking.inserted(np.full(found.size, row), found.astype(np.int32))

    def serve(
        self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Hits of ``ids`` ``(rows, places)``; afterwards the missing ones have been loaded."""
        present = self.look_up(rows, ids, at, weights)
        self.load(rows, ids, ~present & (ids < self.empty))
        return present

    def look_up(
        self, rows: Rows, ids: Ids, at: int, weights: NDArray[np.float32] | None = None
    ) -> NDArray[np.bool_]:
        """Hits of ``ids`` ``(rows, places)``, which pass ``at`` uses; nothing is loaded."""
        present: NDArray[np.bool_] = self.slot_of[rows, ids] >= 0
        self.ranking.touch(rows, ids, at, weights)
        return present

    def load(self, rows: Rows, ids: Ids, missing: NDArray[np.bool_]) -> None:
        """Load those of ``ids`` that are ``missing``, sparing the others; all ``(rows, places)``."""
        if len(rows) == 1:
            wanted = np.count_nonzero(missing)
            kept = None if self.bypasses else ids[0]
            if wanted == 1:
                self._load_one(int(rows[0, 0]), int(ids[missing][0]), kept)
            elif wanted:
                self._load_row(rows, ids, missing, kept)
            return
        lines = np.flatnonzero(missing.any(axis=1))
        if lines.size:
            kept = None if self.bypasses else ids[lines]
            self._load(rows[lines], ids[lines], missing[lines], kept)

    def insert(self, row: int, expert: int, keep: Ids) -> bool:
        """Load one expert ahead of its use, sparing ``keep`` ``(experts,)``; False if no slot could go."""
        if self.slot_of[row, expert] < 0:
            self._load_one(row, expert, None if self.bypasses else keep)
        return bool(self.slot_of[row, expert] >= 0)

    def _load_one(self, row: int, expert: int, kept: Ids | None) -> None:
        """As :meth:`_load` for a single expert, which is what copies ahead of their use are."""
        at = np.array([[row]])
        standing = self._standing(at, kept)
        slot = int(standing.argmin())
        given_up = standing[slot]
        if given_up == _NEVER:
            return
        new = np.array([expert], np.int32)
        if kept is None and self.ranking.worth(at, new[None, :])[0, 0] <= given_up:
            return
        old = self.contents[row, slot : slot + 1].copy()
        if old[0] < self.empty:
            self.slot_of[row, old[0]] = -1
            self.ranking.evicted(at[0], old)
        self.contents[row, slot] = expert
        self.slot_of[row, expert] = slot
        self.ranking.inserted(at[0], new)

    def _standing(self, at: Rows, kept: Ids | None) -> NDArray[np.float64]:
        """What the slots of one row hold is worth; free ones least, those of ``kept`` more than anything."""
        row = int(at[0, 0])
        contents = self.contents[row]
        standing: NDArray[np.float64] = self.ranking.worth(at, contents[None, :])[0]
        standing[contents == self.empty] = -_NEVER
        if self.slots[row] < standing.size:
            standing[self.slots[row] :] = _NEVER
        if kept is not None:
            held = self.slot_of[row, kept]
            standing[held[held >= 0]] = _NEVER
        return standing

    def _load_row(self, at: Rows, ids: Ids, missing: NDArray[np.bool_], kept: Ids | None) -> None:
        """As :meth:`_load` for a single row."""
        row = int(at[0, 0])
        standing = self._standing(at, kept)
        new = ids[missing]
        count = min(new.size, standing.size)
        victim = standing.argpartition(range(count))[:count]
        given_up = standing[victim]
        if kept is None or given_up[-1] == _NEVER or new.size > count:
            value = self.ranking.worth(at, ids)[missing]
            best = np.argsort(-value, kind="stable")[:count]
            new = new[best]
            swap = given_up < _NEVER
            swap &= (value[best] > given_up) if kept is None else swap
            victim, new = victim[swap], new[swap]
        old = self.contents[row, victim]
        self.slot_of[row, old] = -1
        self.contents[row, victim] = new
        self.slot_of[row, new] = victim
        self.slot_of[row, self.empty] = -1
        gone = old[old < self.empty]
        line = np.full(new.size, row)
        self.ranking.evicted(line[: gone.size], gone)
        self.ranking.inserted(line, new)

    def holds(self, row: int, experts: Ids) -> NDArray[np.bool_]:
        """Whether each of ``experts`` of a row is present."""
        return np.asarray(self.slot_of[row, experts] >= 0)

    def _load(self, rows: Rows, ids: Ids, missing: NDArray[np.bool_], kept: Ids | None) -> None:
        line = rows[:, 0]
        contents = self.contents[line]
        standing = self.ranking.worth(rows, contents)
        standing[contents == self.empty] = -_NEVER
        standing[~self.usable[line]] = _NEVER
        if kept is not None:
            held = self.slot_of[rows, kept]
            where, place = np.nonzero(held >= 0)
            standing[where, held[where, place]] = _NEVER
        needed = missing.sum(axis=1)
        count = min(int(needed.max()), standing.shape[1])
        # several partition points at once leave the `count` least in order
        victim = np.argpartition(standing, list(range(count)), axis=1)[:, :count]
        given_up = np.take_along_axis(standing, victim, axis=1)
        if kept is not None and given_up[:, -1].max() < _NEVER and int(needed.max()) <= count:
            # room for all: any order of the newcomers ends in the same contents
            best = np.argsort(~missing, axis=1, kind="stable")[:, :count]
            swap = np.arange(count) < needed[:, None]
        else:
            value = np.where(missing, self.ranking.worth(rows, ids), -_NEVER)
            best = np.argsort(-value, axis=1, kind="stable")[:, :count]
            value = np.take_along_axis(value, best, axis=1)
            swap = np.take_along_axis(missing, best, axis=1) & (given_up < _NEVER)
            swap &= (value > given_up) if kept is None else swap
        newcomer = np.take_along_axis(ids, best, axis=1)
        where, place = np.nonzero(swap)
        row, slot, new = line[where], victim[where, place], newcomer[where, place]
        old = self.contents[row, slot]
        self.slot_of[row, old] = -1
        self.contents[row, slot] = new
        self.slot_of[row, new] = slot
        self.slot_of[:, self.empty] = -1
        gone = old < self.empty
        self.ranking.evicted(row[gone], old[gone])
        self.ranking.inserted(row, new)


def check_slots(slots: int, demand: Demand, *, field: str) -> None:
    """Refuse a cache that one pass would overflow.

    Raises
    ------
    InputError
        Fewer slots than one token's experts.
    """
    if slots < demand.largest:
        accepted = f"at least {demand.largest}, the experts that one pass needs in one layer"
        raise InputError.at(field, slots, accepted)
