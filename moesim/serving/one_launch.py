"""Decoding sequences in attention kernels that take an iteration's prompts and decodes in one launch.

Such a kernel (FlashAttention 2) cuts queries into tiles of a fixed number of rows. Alone, a decode step lays
the query heads that share a key/value head into the rows of one tile. Beside prompts each query head has a
tile of its own, of which one row is used: the cache is read once a query head, from the second on out of the
last-level cache as far as it holds it, and the products cost what a whole tile costs. The grid is as deep as
the longest prompt piece, so that a decoding sequence also brings empty tiles. Work is not shared out evenly
either: a sequence that is longer than the others ends after them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.model.layer_ops import attention_ops
from moesim.model.ops import AttentionDecode, Op, Segment
from moesim.model.spec import LayerSpec
from moesim.serving.engine_cost import EngineCost
from moesim.serving.profiles import OneLaunch

if TYPE_CHECKING:
    from moesim.serving.step_costs import StepCosts

Floats = NDArray[np.float64]

DRAWS = 6
"""Batches whose spread is looked at, for each size."""
MANY = 12
"""Rounds of tiles from which on an uneven batch ends as an even one does."""
REFERENCE = (128.0, 2048.0)
"""Sequences and cached tokens of a batch that fills the device."""


@dataclass(frozen=True)
class Spread:
    """How unequal the caches of sequences are that decode together.

    Attributes
    ----------
    shares : ndarray, ``(sequence,)``
        Cached tokens of some, over their mean. [-]
    """

    shares: Floats

    @classmethod
    def of(cls, prompt_tokens: NDArray[np.int64], answer_tokens: NDArray[np.int64]) -> Spread:
        """Of the requests of a run: each is met in proportion to its answer, anywhere in it."""
        rng = rng_for(0, "serving/spread")
        met = rng.choice(len(answer_tokens), 4096, p=answer_tokens / answer_tokens.sum())
        cached = prompt_tokens[met] + rng.random(len(met)) * answer_tokens[met]
        return cls(cached / cached.mean())


@dataclass(frozen=True)
class OneLaunchAttention:
    """Attention of decoding sequences by such a kernel.

    Attributes
    ----------
    costs : StepCosts
        Prices of tiles that are full, and of decode steps alone.
    kernel : OneLaunch
        Its tiles.
    cost : EngineCost
        As in ``costs``.
    """

    costs: StepCosts
    kernel: OneLaunch
    cost: EngineCost

    @classmethod
    def of(cls, costs: StepCosts) -> OneLaunchAttention | None:
        """For the kernel that the engine runs there; None where that is another."""
        if not isinstance(costs.cost, EngineCost):
            return None
        ops = [
            op for layer in costs.model.layer_kinds() for op in _core(costs, layer, Segment.decode(1.0, 1.0))
        ]
        found = (costs.kernels.one_launch.get(costs.cost.attention_source(op)) for op in ops)
        kernel = next((kernel for kernel in found if kernel is not None), None)
        return None if kernel is None else cls(costs, kernel, costs.cost)

    def beside_prompts(self, sequences: Floats, context: Floats) -> Floats:
        """What sharing a launch with prompts adds to a decode step, over all layers. [s]

        Parameters
        ----------
        sequences, context : ndarray, ``(sample,)``
            Decoding sequences and the mean cached tokens of each.
        """
        rows = float(self.kernel.rows)
        tiles = Segment.prefill(sequences, rows, np.maximum(context - rows, 0.0))
        added = np.zeros(np.shape(sequences))
        for layer, count in self._layers:
            [op] = _core(self.costs, layer, Segment.decode(sequences, context))
            [full] = _of_name(self.costs, layer, tiles)
            alone = np.asarray(self.cost.op(op).seconds)
            beside = np.maximum(alone * self._reads(op), self.cost.op(full).seconds)
            added = added + count * np.maximum(beside - alone, 0.0)
        return np.asarray(np.where(sequences > 0, added, 0.0))

    def empty_s(self, tiles: Floats) -> Floats:
        """All layers, for so many empty tiles of each query head. [s]"""
        heads = sum(count * self._op(layer).num_heads for layer, count in self._layers)
        return np.asarray(tiles * heads * self.kernel.empty_s / self._slots)

    def uneven(self, batches: Sequence[int], spread: Spread) -> Floats:
        """Time of a decode step alone over that of one of equal sequences, ``(batch,)``. [-]"""
        op = self._op(self._layers[0][0])
        rng = rng_for(0, "serving/uneven")
        found = []
        for batch in batches:
            pieces = self._pieces(batch * op.num_kv_heads)
            if batch * op.num_kv_heads * pieces > MANY * self._slots:
                found.append(1.0)
                continue
            even = self._end(np.ones(batch), op.num_kv_heads, pieces)
            draws = [rng.choice(spread.shares, batch) for _ in range(DRAWS)]
            ends = [self._end(d / d.mean(), op.num_kv_heads, pieces) for d in draws]
            found.append(max(float(np.mean(ends)) / even, 1.0))
        return np.array(found)

    @cached_property
    def _layers(self) -> list[tuple[LayerSpec, int]]:
        """Layers that run the kernel, of each kind."""
        found = []
        for layer, indices in self.costs.model.layer_kinds().items():
            ops = _core(self.costs, layer, Segment.decode(1.0, 1.0))
            sources = {self.cost.attention_source(op) for op in ops}
            if any(self.costs.kernels.one_launch.get(source) for source in sources):
                found.append((layer, len(indices)))
        return found

    def _op(self, layer: LayerSpec) -> AttentionDecode:
        return _core(self.costs, layer, Segment.decode(1.0, 1.0))[0]

    @property
    def _slots(self) -> int:
        return self.cost.device.num_units * self.kernel.per_unit

    def _reads(self, op: AttentionDecode) -> Floats:
        """How often the cache is read from memory: tiles of a head run together, heads one after another."""
        a_head = op.num_sequences * op.attended_tokens * op.kv_bytes_per_token / op.num_kv_heads
        lost = np.maximum(1.0 - self.cost.device.l2_bytes / np.maximum(a_head, 1.0), 0.0)
        return np.asarray(1.0 + (op.num_heads / op.num_kv_heads - 1.0) * lost)

    def _pieces(self, tiles: int) -> int:
        """Pieces that each sequence is cut into: the fewest that fill the units almost as well as any."""
        slots = 2 * self.cost.device.num_units
        if tiles >= self.kernel.full * slots:
            return 1
        counts = np.arange(1, 129)
        rounds = counts * tiles / slots
        filled = rounds / np.ceil(rounds)
        return int(counts[np.argmax(filled >= self.kernel.filled * filled.max())])

    @cached_property
    def _fastest(self) -> float:
        """Rate of a tile that has memory for itself over its share among many: then its products count."""
        sequences, context = (np.array([value]) for value in REFERENCE)
        layer = self._layers[0][0]
        rows = float(self.kernel.rows)
        [op] = _core(self.costs, layer, Segment.decode(sequences, context))
        [full] = _of_name(self.costs, layer, Segment.prefill(sequences, rows, context - rows))
        group = op.num_heads / op.num_kv_heads
        times = [float(np.asarray(self.cost.op(o).seconds)[0]) for o in (op, full)]
        return max(times[0] * group / times[1], 1.0)

    def _end(self, lengths: Floats, heads: int, pieces: int) -> float:
        """When the last tile ends: taken in order as slots fall free, memory shared among those at work."""
        work = np.repeat(lengths / pieces, heads * pieces)
        at_work, taken, end = work[: self._slots], self._slots, 0.0
        while at_work.size:
            least = at_work.min()
            end += least / min(self._slots / at_work.size, self._fastest)
            left = at_work[at_work > least] - least
            more = work[taken : taken + self._slots - left.size]
            taken += more.size
            at_work = np.concatenate([left, more])
        return end


def _core(costs: StepCosts, layer: LayerSpec, segment: Segment) -> list[AttentionDecode]:
    """Attention proper of a layer that decodes; nothing where its state is not a cache."""
    return [op for op in _of_name(costs, layer, segment) if isinstance(op, AttentionDecode)]


def _of_name(costs: StepCosts, layer: LayerSpec, segment: Segment) -> list[Op]:
    ops = attention_ops(layer, costs.model.hidden_size, [segment], costs.sharding)
    return [op for op in ops if op.name == "attention"]
