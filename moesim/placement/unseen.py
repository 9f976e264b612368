"""Traffic that no method has seen, in the shapes that judging needs, and how sure a mean over it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from moesim.placement.placed import Floats, Ints
from moesim.traces import RoutingTrace

RESAMPLES = 200
"""Bootstrap samples behind an interval."""
COVERED_FRACTION = 0.8
"""Part of the bootstrap samples inside an interval, as of every band."""
MAX_TOKENS = 2048
"""Tokens that are dispatched one by one."""


@dataclass(frozen=True, eq=False)
class Unseen:
    """Held-out traffic.

    Attributes
    ----------
    requests : ndarray of float64, ``(requests, layers, experts)``
        Tokens of every request. [tokens]
    batches : ndarray of float64, ``(batches, layers, experts)``
        Random batches. [tokens]
    transitions : ndarray of float64, ``(layers - 1, experts, experts)``
        Pair counts of neighbouring layers. [tokens]
    tokens : ndarray of int64, ``(tokens, layers, choices)``
        Experts of single tokens; -1 where a choice is empty.
    domains : mapping of str to ndarray, ``(layers, experts)``
        Traffic of other domains. [tokens]
    """

    requests: Floats
    batches: Floats
    transitions: Floats
    tokens: Ints
    domains: Mapping[str, Floats] = field(default_factory=dict)

    @property
    def loads(self) -> Floats:
        """All of it, ``(layers, experts)``. [tokens]"""
        return np.asarray(self.requests.sum(axis=0), np.float64)

    @classmethod
    def of(
        cls,
        trace: RoutingTrace,
        rng: np.random.Generator,
        *,
        batch_tokens: int,
        num_batches: int,
        sampling: Literal["scattered", "contiguous"] = "scattered",
        domains: Mapping[str, Floats] | None = None,
    ) -> Unseen:
        """Held-out part of a trace, with batches sampled from it."""
        batches = trace.batches(batch_tokens, num_batches, rng, sampling=sampling)
        rows = np.sort(rng.choice(trace.num_tokens, min(MAX_TOKENS, trace.num_tokens), replace=False))
        return cls(
            by_request(trace),
            batches.astype(np.float64),
            trace.transitions().astype(np.float64),
            plain_ids(trace, rows),
            domains or {},
        )


def by_request(trace: RoutingTrace) -> Floats:
    """Tokens of each expert in every request, ``(requests, layers, experts)``. [tokens]"""
    starts = trace.request_starts()
    ends = np.append(starts[1:], trace.num_tokens)
    windows = [trace.window(int(one), int(two)).counts() for one, two in zip(starts, ends, strict=True)]
    return np.stack(windows).astype(np.float64)


def plain_ids(trace: RoutingTrace, rows: Ints) -> Ints:
    """Experts of some tokens, ``(tokens, layers, choices)``, -1 where a choice is empty."""
    ids = np.asarray(trace.expert_ids[rows]).astype(np.int64)
    return np.where(ids == trace.empty_slot, -1, ids)


def interval(samples: Floats, rng: np.random.Generator) -> tuple[float, float]:
    """Where the mean of ``samples``, ``(samples,)``, lies in most resamplings with replacement."""
    drawn = rng.integers(samples.size, size=(RESAMPLES, samples.size))
    return _ends(samples[drawn].mean(axis=1))


def imbalance_interval(
    requests: Floats, rank_share: Floats, speeds: Floats, rng: np.random.Generator
) -> tuple[float, float]:
    """Where the imbalance of all requests lies when requests are drawn anew.

    Parameters
    ----------
    requests : ndarray of float64, ``(requests, layers, experts)``
        Tokens. [tokens]
    rank_share : ndarray of float64, ``(layers, experts, ranks)``
        Of the placement. [-]
    speeds : ndarray of float64, ``(ranks,)``
        Relative to the mean. [-]
    rng : numpy.random.Generator
        Source of the resamples.
    """
    served = np.einsum("qle,leg->qlg", requests, rank_share, optimize=True)
    count = len(requests)
    weights = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES).astype(np.float64)
    loads = (weights @ served.reshape(count, -1)).reshape(RESAMPLES, *served.shape[1:])
    mean = loads.mean(axis=-1)
    peak = (loads / speeds).max(axis=-1)
    ratio = np.divide(peak, mean, out=np.ones_like(mean), where=mean > 0)
    return _ends(ratio.mean(axis=1))


def _ends(values: Floats) -> tuple[float, float]:
    tail = (1 - COVERED_FRACTION) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)
