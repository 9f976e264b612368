"""Who sends how many tokens to whom, counted from actual destinations.

Nothing here knows bytes or seconds: an entry is a number of tokens that cross a link class from one
rank to another. Bytes are tokens times bytes per token, once for dispatch and, transposed, once for
combine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int32] | NDArray[np.int64]

Deduplication: TypeAlias = Literal["expert", "rank", "node"]
"""What is sent once: each (token, expert), each (token, rank), or each (token, scale-up domain)
with forwarding inside the domain (the DeepEP scheme)."""


@dataclass(frozen=True)
class Traffic:
    """Tokens between ranks by link class.

    Attributes
    ----------
    scale_up, scale_out : ndarray, ``(layer, source, destination)``
        Tokens over the scale-up fabric and over the NICs; the diagonal is zero.
    """

    scale_up: NDArray[np.float64]
    scale_out: NDArray[np.float64]

    def transposed(self) -> Traffic:
        """The way back: what combine returns for this dispatch."""
        return Traffic(self.scale_up.swapaxes(-1, -2), self.scale_out.swapaxes(-1, -2))

    def ports(self) -> PortTokens:
        """Row and column sums: what each rank's ports carry."""
        return PortTokens(
            self.scale_up.sum(-1), self.scale_up.sum(-2), self.scale_out.sum(-1), self.scale_out.sum(-2)
        )


@dataclass(frozen=True)
class PortTokens:
    """Tokens through each rank's four ports, each ``(..., rank)``."""

    scale_up_out: NDArray[np.float64]
    scale_up_in: NDArray[np.float64]
    scale_out_out: NDArray[np.float64]
    scale_out_in: NDArray[np.float64]

    def transposed(self) -> PortTokens:
        """Ports of the way back."""
        return PortTokens(self.scale_up_in, self.scale_up_out, self.scale_out_in, self.scale_out_out)

    def scaled(self, ratio: float) -> PortTokens:
        """Ports of so many times the tokens."""
        ports = (self.scale_up_out, self.scale_up_in, self.scale_out_out, self.scale_out_in)
        return PortTokens(*(port * ratio for port in ports))


def routed_traffic(
    source: Ints,
    destination: Ints,
    domain: Ints,
    deduplicate: Deduplication,
) -> Traffic:
    """Tokens between ranks for a routed batch.

    Parameters
    ----------
    source : ndarray of int, ``(token,)``
        Rank that holds each token.
    destination : ndarray of int, ``(token, layer, choice)``
        Rank of each chosen expert copy; negative where a choice is empty.
    domain : ndarray of int, ``(rank,)``
        Scale-up domain of each rank; a domain is a run of consecutive ranks.
    deduplicate : {'expert', 'rank', 'node'}
        See :data:`Deduplication`.

    Returns
    -------
    Traffic
        Exact counts.

    Notes
    -----
    With ``'node'`` a token crosses the NIC once per remote domain, to the rank of the sender's own
    position there (its rail), and is forwarded from it to each distinct rank that needs it.
    """
    num_layers = destination.shape[1]
    num_ranks = len(domain)
    _, starts, inverse, sizes = np.unique(domain, return_index=True, return_inverse=True, return_counts=True)
    # 32 bits hold every (layer, rank, rank) index of interest and halve the memory traffic
    chosen = np.sort(destination.astype(np.int32), axis=-1)
    real = chosen >= 0
    fresh = np.ones_like(real)
    fresh[..., 1:] = chosen[..., 1:] != chosen[..., :-1]
    sent = real if deduplicate == "expert" else real & fresh
    layer = np.broadcast_to(np.arange(num_layers, dtype=np.int32)[:, None], chosen.shape)
    origin = np.broadcast_to(source.astype(np.int32)[:, None, None], chosen.shape)
    start, domain_of, size = (a.astype(np.int32) for a in (starts, inverse, sizes))
    home = domain_of[np.maximum(chosen, 0)]
    remote = domain_of[origin] != home
    counter = _PairCounter(num_layers, num_ranks)
    if deduplicate != "node":
        scale_out = counter.count(layer, origin, chosen, sent & remote)
        scale_up = counter.count(layer, origin, chosen, sent & ~remote)
        return Traffic(scale_up, scale_out)
    new_domain = np.ones_like(real)
    new_domain[..., 1:] = (home[..., 1:] != home[..., :-1]) | ~real[..., :-1]
    rail = start[home] + (origin - start[domain_of[origin]]) % size[home]
    scale_out = counter.count(layer, origin, rail, sent & remote & new_domain)
    holder = np.where(remote, rail, origin)
    return Traffic(counter.count(layer, holder, chosen, sent), scale_out)


@dataclass(frozen=True)
class _PairCounter:
    num_layers: int
    num_ranks: int

    def count(
        self,
        layer: Ints,
        source: Ints,
        destination: Ints,
        counted: NDArray[np.bool_],
    ) -> NDArray[np.float64]:
        """Number of counted entries per (layer, source, destination), without self-sends."""
        # what is not counted lands in one bin past the end: cheaper than picking out what is
        bins = self.num_layers * self.num_ranks**2
        index = (layer * self.num_ranks + source) * self.num_ranks + destination
        index = np.where(counted & (source != destination), index, bins)
        flat = np.bincount(index.ravel(), minlength=bins + 1)[:-1]
        return flat.reshape(self.num_layers, self.num_ranks, self.num_ranks).astype(np.float64)


def near_copies(held: NDArray[np.bool_], domain: NDArray[np.int64], of: int) -> NDArray[np.float64]:
    """Where ranks of a domain send tokens of experts they have no copy of, summing to 1 over ranks. [-]

    Evenly to the copies of their own domain, or, where it has none, to all.

    Parameters
    ----------
    held : ndarray of bool, ``(..., expert, rank)``
        Ranks with a copy.
    domain : ndarray of int, ``(rank,)``
        Domain of each rank.
    of : int
        The senders' domain.
    """
    near = held & (domain == of)
    chosen = np.where(near.any(axis=-1, keepdims=True), near, held)
    return np.asarray(chosen / np.maximum(chosen.sum(axis=-1, keepdims=True), 1))
