"""A pass as blocks: local work, the exchange that needs it, and what its host launches for both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.engine.program import Instruction, Part
from moesim.evidence import Estimate, Grade
from moesim.kernels.cost import FAMILY
from moesim.model.ops import MemoryBound
from moesim.network.crowding import PortUse
from moesim.training.items import Item, Link, Overlapped, Piece
from moesim.training.overlapped import num_launches
from moesim.training.schedules.base import Pass

EXCHANGE_TAG = "dispatch"

Reruns = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class LaunchCost:
    """What launching work costs the host.

    Attributes
    ----------
    launch_s : float
        Host time of one kernel of the forward pass. [s]
    backward_ratio : float
        Kernels of a backward pass over those of its forward. [-]
    checkpoint_launches : float
        Launches' worth of host time to leave a region out and to run it again, beside its own kernels. [-]
    sigma : float
        Of their error. [-]
    grade : str
        Evidence for them.
    """

    launch_s: float
    backward_ratio: float = 2.0
    checkpoint_launches: float = 0.0
    sigma: float = 0.3
    grade: Grade = "assumed"


@dataclass(frozen=True, slots=True)
class Block:
    """Local work, an exchange that needs it, and work that runs beside the exchange.

    Attributes
    ----------
    work : tuple of Part
    launches : float
        Kernels that the host launches for it. [-]
    link, moved : Link, Part or None
        The exchange, and its duration in this pass's direction.
    beside : tuple of Part
    host_waits : bool
        Before what follows the host must read what the work has counted.
    layer, overlapped : tuple of Instruction, Overlapped or None
        Instructions of an overlapped expert layer instead of an exchange, and what they are of.
    """

    work: tuple[Part, ...]
    launches: float
    link: Link | None = None
    moved: Part | None = None
    beside: tuple[Part, ...] = ()
    host_waits: bool = False
    layer: tuple[Instruction, ...] = ()
    overlapped: Overlapped | None = None

    @property
    def use(self) -> PortUse:
        """Of a rank's ports by its exchanges."""
        moving = self.link or self.overlapped
        return moving.use if moving is not None else PortUse()


def forward_blocks(items: Iterable[Item]) -> list[Block]:
    """Blocks of a forward pass down the items."""
    blocks: list[Block] = []
    work: list[Part] = []
    launches = 0.0
    for item in items:
        if isinstance(item, Link):
            blocks.append(Block(tuple(work), launches, item, item.forward, host_waits=item.host_waits))
            work, launches = [], 0.0
        elif isinstance(item, Overlapped):
            blocks.append(Block(tuple(work), launches, host_waits=item.host_waits))
            blocks.append(Block((), num_launches(item.forward), layer=item.forward, overlapped=item))
            work, launches = [], 0.0
        else:
            work += _merged((w.label, w.passes.forward) for w in item.work)
            launches += _launched(item)
    return [*blocks, Block(tuple(work), launches)] if work or launches else blocks


def backward_blocks(items: Sequence[Item], kind: Pass, reruns: Reruns, host: LaunchCost) -> list[Block]:
    """Blocks of a backward pass up the items: gradients of the input, of the weights, or both.

    Work that is run again stands before the gradients that need it; where an exchange is run again, all that
    is run again goes down the items first. Counts are known by then: the host waits for none.
    """
    with_input, with_weight = kind is not Pass.WEIGHT_GRADIENT, kind is not Pass.INPUT_GRADIENT
    replays = any(_exchanges_again(item, reruns) for item in items)
    blocks = _replayed(items, reruns, host) if with_input and replays else []
    work: list[Part] = []
    pending: list[Part] = []
    launches = 0.0
    for item in reversed(items):
        if isinstance(item, Piece):
            if with_input:
                if not replays:
                    again, more = _rerun(item, reruns, host)
                    work, launches = work + again, launches + more
                work += _merged((w.label, w.passes.input_gradient) for w in item.work)
            if with_weight:
                pending += _merged((w.label, w.passes.weight_gradient) for w in item.work)
            share = 0.5 if kind in (Pass.INPUT_GRADIENT, Pass.WEIGHT_GRADIENT) else 1.0
            launches += _launched(item) * host.backward_ratio * share
        elif isinstance(item, Overlapped):
            if not with_input:
                pending += item.weight_gradient
                continue
            if item.activation is not None and not replays and reruns("expert_activation"):
                work.append(Part("recompute", "compute", item.activation))
                launches += 1 + host.checkpoint_launches
            layer = item.backward if with_weight else item.input_gradient
            launches += num_launches(layer) * host.backward_ratio
            blocks.append(Block((*work, *pending), launches, layer=layer, overlapped=item))
            work, pending, launches = [], [], 0.0
        elif with_input:
            beside = tuple(pending) if item.hides_weight_gradient else ()
            own = work if beside else work + pending
            blocks.append(Block(tuple(own), launches, item, item.backward, beside))
            work, pending, launches = [], [], 0.0
    last = (*work, *pending)
    return [*blocks, Block(last, launches)] if last or launches else blocks


def phases(blocks: Iterable[Block]) -> list[list[Block]]:
    """Blocks up to each exchange in which the whole group meets, and what follows the last one."""
    found: list[list[Block]] = [[]]
    for block in blocks:
        found[-1].append(block)
        if block.link is not None and block.link.everybody:
            found.append([])
    return found if found[-1] else found[:-1]


def _exchanges_again(item: Item, reruns: Reruns) -> bool:
    if isinstance(item, Overlapped):
        return reruns(EXCHANGE_TAG)
    return isinstance(item, Link) and reruns(item.tag)


def _replayed(items: Sequence[Item], reruns: Reruns, host: LaunchCost) -> list[Block]:
    """Forward blocks of what is run again, called recomputation."""
    kept: list[Item] = []
    for item in items:
        if not isinstance(item, Piece):
            kept += [item] if _exchanges_again(item, reruns) else []
            continue
        work = tuple(w for w in item.work if reruns(w.tag))
        if work:
            kept.append(replace(item, work=work))
    blocks = [
        replace(block, work=tuple(Part("recompute", "compute", p.estimate) for p in block.work))
        for block in forward_blocks(kept)
    ]
    first = replace(blocks[0], launches=blocks[0].launches + host.checkpoint_launches)
    return [first, *blocks[1:]]


def _rerun(piece: Piece, reruns: Reruns, host: LaunchCost) -> tuple[list[Part], float]:
    """Work of a piece that is run again, and what the host launches for it."""
    parts: list[Part] = []
    regions: set[str] = set()
    launches = 0.0
    for work in piece.work:
        if reruns(work.tag):
            parts.append(Part("recompute", "compute", work.passes.forward))
            regions.add(work.tag)
            launches += work.launches
        elif work.activation is not None and reruns("expert_activation"):
            parts.append(Part("recompute", "compute", work.activation))
            regions.add("expert_activation")
            launches += 1
    return parts, launches + len(regions) * host.checkpoint_launches


def _merged(named: Iterable[tuple[str, Estimate | None]]) -> list[Part]:
    """Parts summed by what they are called and what their errors depend on."""
    sums: dict[tuple[str, str, float, str], Estimate] = {}
    for label, estimate in named:
        if estimate is None:
            continue
        key = (label, estimate.family, estimate.sigma, estimate.grade)
        before = sums.get(key)
        sums[key] = estimate if before is None else replace(before, seconds=before.seconds + estimate.seconds)
    return [Part(key[0], "compute", estimate) for key, estimate in sums.items()]


def _launched(piece: Piece) -> float:
    """Kernels that the host launches; a captured piece is one."""
    return 1.0 if piece.captured else sum(work.launches for work in piece.work) + piece.extra_launches


def longer(parts: Iterable[Part], ratio: float | NDArray[np.float64]) -> tuple[Part, ...]:
    """Parts that last so many times as long."""
    return tuple(replace(p, estimate=replace(p.estimate, seconds=p.estimate.seconds * ratio)) for p in parts)


def memory_share(blocks: Sequence[Block]) -> float:
    """Share of the blocks' work, by time, that reads and writes more than it computes. [-]"""
    seconds = {True: 0.0, False: 0.0}
    for part in (part for block in blocks for part in (*block.work, *block.beside)):
        estimate = part.estimate
        seconds[estimate.family == FAMILY[MemoryBound]] += float(np.mean(estimate.seconds))
    return seconds[True] / (sum(seconds.values()) or 1.0)
