"""What the experts of a group get of a microbatch, in expectation: rows of ranks, tokens through ports.

A training microbatch has so many tokens that counting them one by one is neither needed nor affordable: the
group's share of each expert's tokens is its probability times the tokens, and the chance that a token needs
a rank or node follows from drawing its experts without replacement (exact when experts are alike and
ungrouped).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.kernels.histogram import ExpertLoad
from moesim.model.spec import MoeSpec
from moesim.network.traffic import Deduplication, PortTokens, Traffic, near_copies

Shares = NDArray[np.float64]
"""Fraction of all token copies that each expert gets, ``(draw, layer, expert)``, rows summing to 1."""


@dataclass(frozen=True)
class GroupLoad:
    """Load of one expert-parallel group.

    Attributes
    ----------
    load : ExpertLoad, each ``(draw, layer, rank)``
        Rows of each rank's experts.
    ports : PortTokens, each ``(draw, layer, rank)``
        Tokens that dispatch moves through each rank's ports.
    dropped_fraction : ndarray, ``(draw, layer)``
        Copies beyond the experts' capacity. [-]
    overload : ndarray, ``(draw, layer)``
        Rows of the fullest rank over the mean. [-]
    """

    load: ExpertLoad
    ports: PortTokens
    dropped_fraction: NDArray[np.float64]
    overload: NDArray[np.float64]


def balanced(num_layers: int, num_experts: int) -> Shares:
    """Every expert alike: what forced balance gives, ``(1, layer, expert)``."""
    return np.full((1, num_layers, num_experts), 1.0 / num_experts)


def shares_of(counts: NDArray[np.float64]) -> Shares:
    """Shares from ``counts[draw, layer, expert]``."""
    return np.asarray(counts / np.maximum(counts.sum(-1, keepdims=True), 1))


def group_load(
    shares: Shares,
    moe: MoeSpec,
    *,
    tokens_per_rank: float,
    domain: NDArray[np.int64],
    deduplicate: Deduplication,
    capacity_factor: float | None = None,
    served: NDArray[np.float64] | None = None,
    held: NDArray[np.bool_] | None = None,
) -> GroupLoad:
    """Load of the group whose ranks are in these scale-up domains.

    Parameters
    ----------
    shares : ndarray, ``(draw, layer, expert)``
        Expert ``e`` lives on rank ``e // (experts / ranks)``.
    moe : MoeSpec
    tokens_per_rank : float
        Tokens that every rank sends. [tokens]
    domain : ndarray of int, ``(rank,)``
        Scale-up domain of each rank.
    deduplicate : {'expert', 'rank', 'node'}
        What is sent once.
    capacity_factor : float, optional
        Most copies of an expert over the mean; None: no token is dropped. [-]
    served : ndarray, ``(draw, layer, expert, rank)``, optional
        Share of each expert's copies that each rank serves; None: experts live on the ranks in order. [-]
    held : ndarray of bool, ``(draw, layer, expert, rank)``, optional
        Ranks with a copy of an expert, who serve their own tokens; others prefer copies of their domain.
    """
    num_ranks, num_experts = len(domain), shares.shape[-1]
    copies = tokens_per_rank * num_ranks * moe.experts_per_token
    rows = shares * copies
    dropped = np.zeros(shares.shape[:-1])
    if capacity_factor is not None:
        kept = np.minimum(rows, capacity_factor * copies / num_experts)
        dropped = 1.0 - kept.sum(-1) / copies
        rows = kept
    by_rank = _of_ranks(rows, num_ranks, served)
    total = by_rank.sum(-1)
    chosen = rows / (tokens_per_rank * num_ranks)
    return GroupLoad(
        load=ExpertLoad.of(_whole(by_rank)),
        ports=expected_ports(chosen, moe, tokens_per_rank, domain, deduplicate, served, held),
        dropped_fraction=np.asarray(dropped),
        overload=np.asarray(total.max(-1) / total.mean(-1)),
    )


def _of_ranks(
    values: NDArray[np.float64], num_ranks: int, served: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    """What of each expert's value a rank has, ``(..., rank, slot)``."""
    if served is None:
        return np.asarray(values.reshape(*values.shape[:-1], num_ranks, -1))
    return np.asarray(np.swapaxes(values[..., np.newaxis] * served, -1, -2))


def _whole(rows: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole tokens of each expert whose running sums are those of ``rows``, rounded."""
    ends = np.rint(np.cumsum(rows, axis=-1)).astype(np.int64)
    return np.diff(ends, axis=-1, prepend=0)


def expected_ports(
    chosen: NDArray[np.float64],
    moe: MoeSpec,
    tokens_per_rank: float,
    domain: NDArray[np.int64],
    deduplicate: Deduplication,
    served: NDArray[np.float64] | None = None,
    held: NDArray[np.bool_] | None = None,
) -> PortTokens:
    """Expected tokens through each port in dispatch, each ``(draw, layer, rank)``.

    Parameters
    ----------
    chosen : ndarray, ``(draw, layer, expert)``
        Probability that a token chooses the expert, summing to the choices of a token.
    moe, tokens_per_rank, domain, deduplicate, served, held
        As in :func:`group_load`.
    """
    num_ranks = len(domain)
    domains, of_rank = np.unique(domain, return_inverse=True)
    member = of_rank[:, None] == of_rank
    away = ~np.eye(num_ranks, dtype=np.bool_)
    to_domain = (of_rank[:, None] == np.arange(len(domains))).astype(np.float64)
    if held is not None:
        to, near = _from_each(chosen, moe, held, of_rank, to_domain, one_each=deduplicate == "expert")
    else:
        onto = in_order_of(chosen.shape[-1], num_ranks) if served is None else served
        if deduplicate == "expert":
            hit = _of_ranks(chosen, num_ranks, served).sum(-1)
        else:
            hit = _any_of(chosen, moe, onto)
        to = np.broadcast_to(hit[..., None, :], (*hit.shape[:-1], num_ranks, num_ranks))
        near = to if deduplicate != "node" else _any_of(chosen, moe, onto @ to_domain)[..., None, :]
    to = to * tokens_per_rank
    if deduplicate != "node":
        return Traffic(to * (member & away), to * ~member).ports()
    near = np.broadcast_to(near, (*to.shape[:-1], len(domains))) * tokens_per_rank
    return _forwarded(to, near, of_rank, member, away)


def _from_each(
    chosen: NDArray[np.float64],
    moe: MoeSpec,
    held: NDArray[np.bool_],
    of_rank: NDArray[np.int64],
    to_domain: NDArray[np.float64],
    *,
    one_each: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Probability that a token of each source needs a rank, and a domain, where near copies are preferred.

    ``(..., source, rank)`` and ``(..., source, domain)``; with ``one_each`` the number of choices instead.
    """
    num_ranks = held.shape[-1]
    to = np.zeros((*chosen.shape[:-1], num_ranks, num_ranks))
    near = np.zeros((*chosen.shape[:-1], num_ranks, to_domain.shape[-1]))
    for domain in np.unique(of_rank):
        onto = near_copies(held, of_rank, int(domain))
        for source in np.flatnonzero(of_rank == domain):
            sent = chosen * ~held[..., source]
            if one_each:
                to[..., source, :] = (sent[..., None, :] @ onto)[..., 0, :]
            else:
                to[..., source, :] = _any_of(sent, moe, onto)
            near[..., source, :] = _any_of(sent, moe, onto @ to_domain)
    return to, near


def _forwarded(
    to: NDArray[np.float64],
    near: NDArray[np.float64],
    of_rank: NDArray[np.int64],
    member: NDArray[np.bool_],
    away: NDArray[np.bool_],
) -> PortTokens:
    """Ports when a token crosses once a domain, to its sender's rail there, and is forwarded inside."""
    num_ranks = len(of_rank)
    place = np.array([np.flatnonzero(of_rank == d).tolist().index(r) for r, d in enumerate(of_rank)])
    sizes = np.bincount(of_rank)
    starts = np.array([np.flatnonzero(of_rank == d)[0] for d in range(len(sizes))])
    scale_out = np.zeros((*to.shape[:-2], num_ranks, num_ranks))
    scale_up = to * (member & away)
    for domain in range(len(sizes)):
        senders = np.flatnonzero(of_rank != domain)
        rails = starts[domain] + place[senders] % sizes[domain]
        scale_out[..., senders, rails] = near[..., senders, domain]
        inside = np.flatnonzero(of_rank == domain)
        for rail in inside:
            forwarded = to[..., senders[rails == rail], :][..., inside].sum(-2)
            forwarded[..., inside == rail] = 0.0
            scale_up[..., rail, inside] += forwarded
    return Traffic(scale_up, scale_out).ports()


def in_order_of(num_experts: int, num_ranks: int) -> NDArray[np.float64]:
    """Shares of consecutive experts on consecutive ranks, ``(expert, rank)``. [-]"""
    place_of = np.arange(num_ranks).repeat(num_experts // num_ranks)
    return np.asarray(place_of[:, None] == np.arange(num_ranks), dtype=np.float64)


def _any_of(chosen: NDArray[np.float64], moe: MoeSpec, onto: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probability that a token needs any expert of each place, ``(..., place)``.

    ``onto`` is the share of each expert's copies that each place serves, ``(..., expert, place)``.

    With group-limited routing a token first draws its groups; given them its experts are likelier.
    """
    num_experts = chosen.shape[-1]
    groups = moe.num_groups if moe.num_groups > 1 and num_experts % moe.num_groups == 0 else 1
    open_share = min(moe.top_k_groups / groups, 1.0) if groups > 1 else 1.0
    group_of = np.arange(num_experts) // (num_experts // groups)
    open_experts, choices = num_experts * open_share, max(1, round(moe.experts_per_token))
    never = np.ones((*chosen.shape[:-1], onto.shape[-1]))
    for group in range(groups):
        own = group_of == group
        share = (chosen[..., None, own] @ onto[..., own, :])[..., 0, :] / (choices * open_share)
        missed = np.ones_like(share)
        for drawn in range(choices):  # the j-th choice avoids the experts that are already taken
            missed *= np.maximum(1.0 - share * open_experts / max(open_experts - drawn, 1.0), 0.0)
        never *= 1.0 - open_share * (1.0 - missed)
    return np.asarray(1.0 - never)
