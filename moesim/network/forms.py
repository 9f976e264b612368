"""Time of expert-parallel exchanges: physical forms whose few parameters are fitted to measured tables.

A form sees what a rank moves, not how it was routed: bytes through its busiest scale-up port and NIC
direction. So the same parameters answer for balanced benchmarks and for the traffic of real routings.
Numbers are vectorised; bandwidths are fractions of the datasheet's, so that another link changes the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.units import GB, MEGA, MS, NS, TB, US

Floats = NDArray[np.float64]

REFERENCE_ROW_BYTES = 7168.0
"""Payload at which the per-SM bandwidth is stated: a token of width 7,168 in fp8."""

REFERENCE_SMS = 20.0
MOST_OF_A_LINK = 0.9
"""Assumed: the most that a kernel moves of a scale-up link; where SMs were the limit tables do not say."""

MOST_NORM = 16.0
"""Sharper joins than this are maxima."""


@dataclass(frozen=True)
class Moved:
    """What one rank's exchange moves; all arrays of one shape, or scalars.

    Attributes
    ----------
    tokens : float or ndarray
        Tokens that a rank sends. [tokens]
    row_bytes : float or ndarray
        Payload of a token. [bytes]
    scale_up_bytes, nic_bytes : float or ndarray
        Through the busiest scale-up port and NIC direction, without what stays on the rank. [bytes]
    num_ranks, num_domains : float or ndarray
        Members of the exchange, and scale-up domains that they are in. [-]
    num_experts : float or ndarray
        Expert slots of the layer. [-]
    sms : float or ndarray
        Streaming multiprocessors given to communication. [-]
    scale_up_bytes_per_s, nic_bytes_per_s : float or ndarray
        Datasheet rates of one direction of a rank. [bytes/s]
    """

    tokens: Any
    row_bytes: Any
    scale_up_bytes: Any
    nic_bytes: Any
    num_ranks: Any
    num_domains: Any
    num_experts: Any
    sms: Any
    scale_up_bytes_per_s: Any
    nic_bytes_per_s: Any


@dataclass(frozen=True)
class Form:
    """A formula, and for each of its parameters where a search starts and its range."""

    seconds: Callable[[Moved, Mapping[str, float]], Any]
    parameters: Mapping[str, tuple[float, float, float]]


def normal_s(moved: Moved, p: Mapping[str, float]) -> Any:
    r"""High-throughput kernel (DeepEP normal): copies by a few SMs until a link is full.

    Notes
    -----
    .. math:: t = \left\Vert a_0 + a_N \log_2 N,\;
        a_T T \tfrac{20}{sms} + \left\Vert \tfrac{B'}{sms \, b_{sm}}, \tfrac{B_{up}}{f_{up} b_{up}},
        \tfrac{B_{nic}}{f_{nic} b_{nic}} \right\Vert_p \right\Vert_q, \quad
        B' = B_{up} (row / 7168)^{g - 1}

    What an SM copies in a second depends on the width of a row, what a link carries does not. Four domains
    or fewer are reached at the full rate, more at ``far`` of it.
    """
    norm = min(max(p["norm"], 1.0), MOST_NORM)
    copied = moved.scale_up_bytes * (moved.row_bytes / REFERENCE_ROW_BYTES) ** (p["row_exponent"] - 1)
    by_sms = copied / (moved.sms * p["sm_bytes_per_s"])
    by_link = moved.scale_up_bytes / (p["scale_up_fraction"] * moved.scale_up_bytes_per_s)
    reached = p["nic_fraction"] * np.where(np.greater(moved.num_domains, 4), p["far"], 1.0)
    by_nic = _over(moved.nic_bytes, reached * moved.nic_bytes_per_s)
    moving = (by_sms**norm + by_link**norm + by_nic**norm) ** (1 / norm)
    moving = moving + p["token_s"] * moved.tokens * REFERENCE_SMS / moved.sms
    fixed = p["base_s"] + p["domain_s"] * np.log2(moved.num_domains)
    return (fixed ** p["join"] + moving ** p["join"]) ** (1 / p["join"])


def low_latency_s(moved: Moved, p: Mapping[str, float]) -> Any:
    r"""Low-latency kernel (DeepEP): every copy sent at once, straight to its expert's queue.

    Notes
    -----
    .. math:: t = a_0 + a_N \log_2 N + a_E E + \left\Vert \tfrac{B}{f_{up} b_{up}},
        \tfrac{B_{nic}}{f_{nic} b_{nic}}, \tfrac{B}{E \, b_E} \right\Vert_p
    """
    norm = min(max(p["norm"], 1.0), MOST_NORM)
    copied = moved.scale_up_bytes + moved.nic_bytes
    by_link = copied / (p["scale_up_fraction"] * moved.scale_up_bytes_per_s)
    by_nic = _over(moved.nic_bytes, p["nic_fraction"] * moved.nic_bytes_per_s)
    by_expert = copied / (moved.num_experts * p["expert_bytes_per_s"])
    fixed = p["base_s"] + p["domain_s"] * np.log2(moved.num_domains) + p["expert_s"] * moved.num_experts
    return fixed + (by_link**norm + by_nic**norm + by_expert**norm) ** (1 / norm)


def nvlink_s(moved: Moved, p: Mapping[str, float]) -> Any:
    r"""Exchange written straight into the peers' memory over one scale-up fabric.

    Notes
    -----
    .. math:: t = \left\Vert a_0 + a_1 \log_2 n,\; \tfrac{B_{up}}{f b_{up}} (n / 8)^{\gamma - 1} + a_T T
        \right\Vert_q
    """
    spread = (np.asarray(moved.num_ranks) / 8.0) ** (p["rank_exponent"] - 1)
    moving = moved.scale_up_bytes / (p["scale_up_fraction"] * moved.scale_up_bytes_per_s) * spread
    moving = moving + p["token_s"] * moved.tokens
    fixed = p["base_s"] + p["rank_s"] * np.log2(moved.num_ranks)
    return (fixed ** p["join"] + moving ** p["join"]) ** (1 / p["join"])


def queued_s(moved: Moved, p: Mapping[str, float]) -> Any:
    r"""Copies put into a queue for each expert of the receiver, which empties them in turn (pplx-kernels).

    Notes
    -----
    .. math:: t = a_0 + a_N \log_2 N + a_q C \tfrac{E}{n} + a_T T + a_n n T
        + \tfrac{B_{nic}}{f_{nic} b_{nic}}

    with :math:`C` copies a rank: few, large queues at few ranks, many messages at many.
    """
    sent = (moved.scale_up_bytes + moved.nic_bytes) / moved.row_bytes
    copies = sent * moved.num_ranks / np.maximum(np.asarray(moved.num_ranks) - 1, 1)
    fixed = p["base_s"] + p["domain_s"] * np.log2(moved.num_domains)
    queues = p["queue_s"] * copies * moved.num_experts / moved.num_ranks
    tokens = (p["token_s"] + p["peer_s"] * moved.num_ranks) * moved.tokens
    by_nic = _over(moved.nic_bytes, p["nic_fraction"] * moved.nic_bytes_per_s)
    return fixed + queues + tokens + by_nic


def _over(amount: Any, rate: Any) -> Any:
    """Quotient, 0 where nothing is moved: a single node need not have a NIC."""
    return np.where(np.greater(amount, 0), np.asarray(amount) / np.where(np.greater(rate, 0), rate, 1.0), 0.0)


FORMS: dict[str, Form] = {
    "normal": Form(
        normal_s,
        {
            "base_s": (30 * US, US, MS),
            "domain_s": (5 * US, NS, MS),
            "token_s": (20 * NS, NS / MEGA, US),
            "sm_bytes_per_s": (24 * GB, GB, TB),
            "scale_up_fraction": (0.81, 0.05, MOST_OF_A_LINK),
            "nic_fraction": (0.9, 0.1, 2.0),
            "far": (0.6, 0.1, 1.0),
            "row_exponent": (1.0, 0.4, 2.0),
            "norm": (3.0, 1.0, 16.0),
            "join": (0.9, 0.4, 8.0),
        },
    ),
    "low_latency": Form(
        low_latency_s,
        {
            "base_s": (9 * US, US / 10, MS),
            "domain_s": (4 * US, NS, MS),
            "expert_s": (10 * NS, NS / 100, US),
            "scale_up_fraction": (0.6, 0.05, 4.0),
            "nic_fraction": (0.95, 0.1, 2.0),
            "expert_bytes_per_s": (4 * GB, GB / 10, TB),
            "norm": (3.0, 1.0, 16.0),
        },
    ),
    "nvlink": Form(
        nvlink_s,
        {
            "base_s": (10 * US, US / 10, MS),
            "rank_s": (US, NS, MS / 10),
            "token_s": (10 * NS, NS / MEGA, US),
            "scale_up_fraction": (0.9, 0.01, 4.0),
            "rank_exponent": (1.1, 0.5, 2.0),
            "join": (1.0, 0.4, 8.0),
        },
    ),
    "queued": Form(
        queued_s,
        {
            "base_s": (60 * US, US, MS),
            "domain_s": (5 * US, NS, 100 * US),
            "queue_s": (30 * NS, NS / 10, US),
            "token_s": (US / 2, NS / MEGA, 10 * US),
            "nic_fraction": (0.9, 0.2, 2.0),
            "peer_s": (1.6 * NS, NS / MEGA, US),
        },
    ),
}
"""Forms by name."""


def hit_probability(parts: Any, num_experts: Any, top_k: Any) -> Floats:
    r"""Probability that a token needs one of ``parts`` equal shares of the experts.

    .. math:: 1 - \prod_{j<k} \frac{E - E/n - j}{E - j}
    """
    parts, num_experts, top_k = np.broadcast_arrays(parts, num_experts, top_k)
    missed = np.ones(parts.shape)
    for chosen in range(int(top_k.max())):
        left = num_experts - chosen
        factor = np.clip((num_experts - num_experts / parts - chosen) / np.maximum(left, 1), 0.0, 1.0)
        missed = missed * np.where(chosen < top_k, factor, 1.0)
    return np.asarray(1 - missed)
