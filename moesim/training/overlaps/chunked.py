"""Rows in chunks: one is computed while others travel (Tutel, PipeMoE, FasterMoE)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from moesim.engine.program import Instruction
from moesim.training.overlaps.base import Triple, run_s, triple_overlaps


@triple_overlaps.register("chunked")
@dataclass(frozen=True)
class Chunked:
    """Dispatch, experts and combine of equal chunks of the rows as a pipeline of two streams.

    The dispatch of a chunk is launched ahead of the combine of the one before the last, so that experts find
    rows whenever exchanges leave time. Every chunk pays the fixed costs of all three and reads the experts'
    weights again, and products miss the multiprocessors of the exchanges beside them: more chunks are not
    always better.

    Attributes
    ----------
    degree : int or None
        Chunks; None: the quickest of ``choices`` for these rows. [-]
    choices : tuple of int
        Degrees that are tried. [-]

    References
    ----------
    .. [1] Hwang et al., "Tutel: Adaptive Mixture-of-Experts at Scale," arXiv:2206.03382, section 3.3.
    """

    reads_counts: ClassVar[bool] = True
    degree: Annotated[int, Field(ge=1)] | None = None
    choices: tuple[Annotated[int, Field(ge=1)], ...] = (1, 2, 4, 8)

    def launch(self, triple: Triple) -> list[Instruction]:
        """Instructions of the given, or the quickest, degree."""
        if self.degree is not None:
            return pipelined(triple, self.degree)
        offers = [pipelined(triple, degree) for degree in self.choices]
        return min(offers, key=lambda offer: float(run_s(offer, len(triple.group)).max()))


def pipelined(triple: Triple, degree: int) -> list[Instruction]:
    """Instructions of ``degree`` equal chunks."""
    part = 1.0 / degree
    there, back = triple.dispatch(part), triple.combine(part)
    launched = [*triple.computed(), *there, *triple.arrived()]
    for chunk in range(degree):
        ahead = chunk + 1 < degree
        # the dispatch of the next chunk and the combine of the last one travel meanwhile
        beside = [triple.dispatch_s(part)] * ahead + [triple.combine_s(part)] * (chunk > 0)
        experts = triple.experts(part, beside)
        launched += [*there, *experts, *triple.arrived()] if ahead else experts
        launched += [*triple.computed(), *back]
    return [*launched, *triple.arrived()]
