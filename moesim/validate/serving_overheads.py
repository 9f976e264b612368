"""Host overheads of each engine family from measured runs, and how they do on models they were not fitted to.

A prediction is close to linear in the overheads: a token costs one exposed iteration and its share of the
batch, a first token one way to the scheduler and some iterations of delivery. So overheads are fitted to the
rows of one prediction run, without playing it again, by least medians over a grid; each model counts alike
however many rows it has. Left out, a model is answered by what the others say of its family, or where these
have none of it, of the engine.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.units import MS, US

Floats = NDArray[np.float64]

ITERATIONS_S = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9, 1.1, 1.3, 1.5, 1.7, 2, 2.5, 3, 4]) * MS
SEQUENCES_S = np.array([0, 2, 5, 10, 15, 20, 25, 30, 35, 40, 50, 60, 70]) * US
REQUESTS_S = np.array([0, 5, 10, 20, 30, 50, 70, 90, 110, 130, 160, 200, 300]) * MS
DELIVERIES = np.array([0, 1, 2, 3, 5, 7, 10, 15, 20], dtype=np.float64)
LARGE = 0.5
"""Errors beyond this (ln) are of rows that no overhead explains."""
TAIL_WEIGHT = 0.3
LEAST_ROWS = 3

Family = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Overheads:
    """What is fitted of a family. [s], [s], [s], [-]"""

    iteration_s: float
    sequence_s: float
    request_s: float
    delivery_iterations: float


@dataclass(frozen=True, slots=True)
class Sample:
    """One run as far as overheads matter.

    Attributes
    ----------
    model, engine, family : str
    tpot_s, ttft_s : tuple of float
        Measured, predicted. [s]
    gain : float
        Tokens that a sequence gains in an iteration. [tokens]
    decodes : float
        Sequences of a rank in a typical iteration.
    used : Overheads
        That the prediction was made with.
    """

    model: str
    engine: str
    family: str
    tpot_s: tuple[float, float]
    ttft_s: tuple[float, float]
    gain: float
    decodes: float
    used: Overheads

    @property
    def key(self) -> Family:
        """Engine and family."""
        return self.engine, self.family

    def with_overheads(self, other: Overheads) -> tuple[float, float]:
        """Time per output token and to the first one with other overheads. [s]"""
        step = (other.iteration_s - self.used.iteration_s) + self.decodes * (
            other.sequence_s - self.used.sequence_s
        )
        tpot = max(self.tpot_s[1] + step / self.gain, US)
        delivered = other.delivery_iterations * tpot - self.used.delivery_iterations * self.tpot_s[1]
        ttft = self.ttft_s[1] + other.request_s - self.used.request_s + delivered * self.gain
        return tpot, max(ttft, US)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Errors of one model under overheads that its rows had no part in.

    Attributes
    ----------
    model : str
    num_rows : int
    tpot_median_ape, ttft_median_ape : float
        [-]
    """

    model: str
    num_rows: int
    tpot_median_ape: float
    ttft_median_ape: float


def fitted(samples: Sequence[Sample]) -> dict[Family, Overheads]:
    """Overheads of every family that the samples have, and of each engine as family ``""``."""
    found: dict[Family, Overheads] = {}
    for engine in sorted({s.engine for s in samples}):
        own = [s for s in samples if s.engine == engine]
        found[engine, ""] = _least(own)
        for family in sorted({s.family for s in own}):
            rows = [s for s in own if s.family == family]
            found[engine, family] = _least(rows) if len(rows) >= LEAST_ROWS else found[engine, ""]
    return found


def leave_one_out(samples: Sequence[Sample], same: Mapping[str, str] | None = None) -> list[LeftOut]:
    """Every model under overheads fitted to the others.

    Parameters
    ----------
    samples : sequence of Sample
    same : mapping, optional
        ``{model: weights}`` of models with the shapes of another: these are left out together.
    """
    names = same or {}
    result = []
    for model in sorted({names.get(s.model, s.model) for s in samples}):
        own = [s for s in samples if names.get(s.model, s.model) == model]
        rest = [s for s in samples if names.get(s.model, s.model) != model]
        overheads = fitted(rest)
        pairs = [(s, overheads.get(s.key) or overheads.get((s.engine, ""), s.used)) for s in own]
        made = np.array([s.with_overheads(o) for s, o in pairs])
        true = np.array([(s.tpot_s[0], s.ttft_s[0]) for s in own])
        tpot, ttft = np.median(np.abs(made / true - 1), axis=0)
        result.append(LeftOut(model, len(own), float(tpot), float(ttft)))
    return result


def overall(samples: Sequence[Sample], same: Mapping[str, str] | None = None) -> tuple[float, float]:
    """Median errors over all rows, each under overheads fitted to other models. [-]"""
    names = same or {}
    apes: list[Floats] = []
    for model in sorted({names.get(s.model, s.model) for s in samples}):
        overheads = fitted([s for s in samples if names.get(s.model, s.model) != model])
        own = [s for s in samples if names.get(s.model, s.model) == model]
        pairs = [(s, overheads.get(s.key) or overheads.get((s.engine, ""), s.used)) for s in own]
        made = np.array([s.with_overheads(o) for s, o in pairs])
        apes.append(np.abs(made / np.array([(s.tpot_s[0], s.ttft_s[0]) for s in own]) - 1))
    tpot, ttft = np.median(np.concatenate(apes), axis=0)
    return float(tpot), float(ttft)


def _least(rows: Sequence[Sample]) -> Overheads:
    """Grid point of the least mean, over models, of the score of their errors: steps first, then the rest."""
    models = sorted({s.model for s in rows})
    of_model = [np.array([s.model == m for s in rows]) for m in models]
    used = _columns(rows)
    best: tuple[float, Overheads] | None = None
    for iteration in ITERATIONS_S:
        for sequence in SEQUENCES_S:
            error = np.log(np.maximum(_tpot(used, iteration, sequence), US) / used["tpot"])
            best = _better(best, error, of_model, Overheads(float(iteration), float(sequence), 0.0, 0.0))
    assert best is not None
    steps = best[1]
    tpot = np.maximum(_tpot(used, steps.iteration_s, steps.sequence_s), US)
    best = None
    for request in REQUESTS_S:
        for delivery in DELIVERIES:
            made = used["ttft_0"] + request + delivery * tpot * used["gain"]
            error = np.log(np.maximum(made, US) / used["ttft"])
            found = replace(steps, request_s=float(request), delivery_iterations=float(delivery))
            best = _better(best, error, of_model, found)
    assert best is not None
    return best[1]


def _columns(rows: Sequence[Sample]) -> dict[str, Floats]:
    bare = Overheads(0.0, 0.0, 0.0, 0.0)
    without = np.array([s.with_overheads(bare) for s in rows])
    return {
        "tpot": np.array([s.tpot_s[0] for s in rows]),
        "ttft": np.array([s.ttft_s[0] for s in rows]),
        "tpot_0": without[:, 0],
        "ttft_0": without[:, 1],
        "gain": np.array([s.gain for s in rows]),
        "decodes": np.array([s.decodes for s in rows]),
    }


def _tpot(used: Mapping[str, Floats], iteration: float, sequence: float) -> Floats:
    return used["tpot_0"] + (iteration + sequence * used["decodes"]) / used["gain"]


def _better(
    best: tuple[float, Overheads] | None, error: Floats, of_model: Iterable[Floats], found: Overheads
) -> tuple[float, Overheads]:
    size = np.minimum(np.abs(error), LARGE)
    scores = [np.median(size[own]) + TAIL_WEIGHT * np.mean(size[own]) for own in of_model]
    score = float(np.mean(scores))
    return best if best is not None and best[0] <= score else (score, found)
