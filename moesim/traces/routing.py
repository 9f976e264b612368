"""Routing traces: which experts every token chose in every layer.

A trace describes traffic only. It refuses to know ranks, placements or seconds; those rooms read
:meth:`RoutingTrace.counts`, :meth:`RoutingTrace.batches` and :meth:`RoutingTrace.transitions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem, did_you_mean
from moesim.traces.description import PHASES, TraceInfo, empty_slot, info_problems

ExpertIds: TypeAlias = NDArray[np.unsignedinteger[Any]]
Counts: TypeAlias = NDArray[np.int64]
Sampling: TypeAlias = Literal["scattered", "contiguous"]

CHUNK_TOKENS = 16_384
"""Tokens looked at together where a whole trace is streamed."""


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTrace:
    """Experts chosen by each token in each layer, one row a token.

    Rows of a request are consecutive and in order of position; prefill rows come before decode
    rows. Slots of one token and layer are distinct experts, in the router's own order; a slot that
    holds :attr:`empty_slot` chose no expert. Arrays may be memory-mapped and are never written to.

    Attributes
    ----------
    info : TraceInfo
        Model, experts, layers, source.
    expert_ids : ndarray of uint8 or uint16, ``(tokens, layers, slots)``
        Logical expert ids; the largest value of the type marks an empty slot.
    request_index, position, step_index : ndarray of int32, ``(tokens,)``
        Request (non-decreasing), place in it (increasing), and engine step that processed the token.
    phase : ndarray of uint8, ``(tokens,)``
        0 prefill, 1 decode: positions in :data:`~moesim.traces.description.PHASES`.
    domain_index : ndarray of uint8, ``(tokens,)``
        Index into ``info.domains``.
    gate_weights : ndarray of float16, ``(tokens, layers, slots)``, optional
        Weight the router gave each choice. [-]

    Raises
    ------
    InputError
        Shapes or types that contradict each other, or no token at all.
    """

    info: TraceInfo
    expert_ids: ExpertIds
    request_index: NDArray[np.int32]
    position: NDArray[np.int32]
    step_index: NDArray[np.int32]
    phase: NDArray[np.uint8]
    domain_index: NDArray[np.uint8]
    gate_weights: NDArray[np.float16] | None = None

    def __post_init__(self) -> None:
        problems = _shape_problems(self)
        if problems:
            raise InputError(problems, source="routing trace")

    @property
    def num_tokens(self) -> int:
        """Rows. [tokens]"""
        return int(self.expert_ids.shape[0])

    @property
    def num_layers(self) -> int:
        """Traced layers. [-]"""
        return int(self.expert_ids.shape[1])

    @property
    def top_k(self) -> int:
        """Slots a token and layer. [-]"""
        return int(self.expert_ids.shape[2])

    @property
    def num_experts(self) -> int:
        """Routed experts a layer. [-]"""
        return self.info.num_experts

    @property
    def num_requests(self) -> int:
        """Distinct requests. [-]"""
        return 1 + int(np.count_nonzero(np.diff(self.request_index)))

    @property
    def empty_slot(self) -> int:
        """Id that marks a slot without expert: the largest value of the id type."""
        return empty_slot(self.expert_ids.dtype)

    def take(self, rows: slice | NDArray[np.bool_] | NDArray[np.int64]) -> RoutingTrace:
        """Trace of some rows; a slice stays a view of the same memory."""
        weights = self.gate_weights
        return replace(
            self,
            expert_ids=self.expert_ids[rows],
            request_index=self.request_index[rows],
            position=self.position[rows],
            step_index=self.step_index[rows],
            phase=self.phase[rows],
            domain_index=self.domain_index[rows],
            gate_weights=None if weights is None else weights[rows],
        )

    def window(self, start: int, stop: int) -> RoutingTrace:
        """Rows ``start`` to ``stop - 1``, a view."""
        if not 0 <= start < stop <= self.num_tokens:
            raise InputError.at("window", (start, stop), f"0 <= start < stop <= {self.num_tokens} [tokens]")
        return self.take(slice(start, stop))

    def select(self, *, domain: str | None = None, phase: str | None = None) -> RoutingTrace:
        """Rows of one domain and/or of one phase (``'prefill'``, ``'decode'``).

        Raises
        ------
        InputError
            A name that the trace does not have, or no row left.
        """
        keep = np.ones(self.num_tokens, np.bool_)
        if domain is not None:
            keep &= self.domain_index == _index_of(domain, self.info.domains, "domain")
        if phase is not None:
            keep &= self.phase == _index_of(phase, PHASES, "phase")
        if not keep.any():
            raise InputError([Problem("select", f"no token has domain={domain!r} and phase={phase!r}")])
        return self.take(keep)

    def split(self, fit_fraction: float = 0.5) -> tuple[RoutingTrace, RoutingTrace]:
        """Fit part and held-out part; no request is in both.

        The requests of every domain are dealt out in their order, as evenly as whole requests allow,
        so the split needs no random numbers and both parts see the same mix of domains.

        Raises
        ------
        InputError
            Fraction outside (0, 1), or a part that would be empty.
        """
        if not 0.0 < fit_fraction < 1.0:
            raise InputError.at("fit_fraction", fit_fraction, "a number between 0 and 1, both excluded")
        starts = self.request_starts()
        dealt = np.zeros(starts.size, np.bool_)
        domain = np.asarray(self.domain_index)[starts]
        for index in np.unique(domain):
            members = np.flatnonzero(domain == index)
            # half-way offset: the first of two requests goes to the fit part, the second is held out
            quota = np.floor(np.arange(members.size + 1) * fit_fraction + 0.5).astype(np.int64)
            dealt[members] = np.diff(quota) > 0
        lengths = np.diff(np.append(starts, self.num_tokens))
        rows = np.repeat(dealt, lengths)
        if rows.all() or not rows.any():
            message = (
                f"{starts.size} requests cannot be split by fit_fraction={fit_fraction}; both parts need one"
            )
            raise InputError([Problem("split", message)])
        return self.take(rows), self.take(~rows)

    def request_starts(self) -> NDArray[np.int64]:
        """Row at which each request begins, ``(requests,)``."""
        return np.concatenate(([0], 1 + np.flatnonzero(np.diff(self.request_index)))).astype(np.int64)

    def counts(self) -> Counts:
        """Tokens that chose each expert, ``(layers, experts)``. [tokens]"""
        total = np.zeros((self.num_layers, self.num_experts), np.int64)
        for start in range(0, self.num_tokens, CHUNK_TOKENS):
            total += count_experts(self.expert_ids[start : start + CHUNK_TOKENS], self.num_experts)
        return total

    def batches(
        self,
        batch_tokens: int,
        num_batches: int,
        rng: np.random.Generator,
        *,
        sampling: Sampling = "scattered",
    ) -> Counts:
        """Experts' token counts of random batches of the trace.

        Parameters
        ----------
        batch_tokens : int
            Tokens a batch, >= 1. [tokens]
        num_batches : int
            Batches, >= 0. [-]
        rng : numpy.random.Generator
            Source of the random rows.
        sampling : {'scattered', 'contiguous'}
            ``scattered``: independent rows of anywhere in the trace, as in a decode batch of
            unrelated requests (without repetition while the trace is long enough). ``contiguous``:
            consecutive rows from a random start, as in a prefill batch; wraps around at the end.

        Returns
        -------
        ndarray of int64, ``(num_batches, layers, experts)``
            Sum over experts is ``batch_tokens * top_k`` less empty slots. [tokens]
        """
        if batch_tokens < 1:
            raise InputError.at("batch_tokens", batch_tokens, "a whole number >= 1")
        result = np.empty((num_batches, self.num_layers, self.num_experts), np.int64)
        for batch in range(num_batches):
            rows = self._batch_rows(batch_tokens, rng, sampling)
            result[batch] = count_experts(self.expert_ids[rows], self.num_experts)
        return result

    def _batch_rows(
        self, batch_tokens: int, rng: np.random.Generator, sampling: Sampling
    ) -> NDArray[np.int64]:
        if sampling == "contiguous":
            start = int(rng.integers(self.num_tokens))
            return (start + np.arange(batch_tokens)) % self.num_tokens
        if batch_tokens > self.num_tokens:
            return rng.integers(self.num_tokens, size=batch_tokens)
        return rng.choice(self.num_tokens, size=batch_tokens, replace=False, shuffle=False)

    def transitions(self) -> Counts:
        """Pair counts between neighbouring traced layers, ``(layers - 1, experts, experts)``.

        Entry ``[l, i, j]`` is the number of tokens that chose expert ``i`` in layer ``l`` and
        expert ``j`` in layer ``l + 1``; a token contributes all its pairs. [tokens]
        """
        experts, wide = self.num_experts, self.num_experts + 1
        pairs = np.zeros((max(0, self.num_layers - 1), experts, experts), np.int64)
        for start in range(0, self.num_tokens, CHUNK_TOKENS):
            ids = np.minimum(self.expert_ids[start : start + CHUNK_TOKENS], experts).astype(np.int64)
            for layer in range(self.num_layers - 1):
                codes = ids[:, layer, :, None] * wide + ids[:, layer + 1, None, :]
                square = np.bincount(codes.ravel(), minlength=wide * wide).reshape(wide, wide)
                pairs[layer] += square[:-1, :-1]
        return pairs


@dataclass(frozen=True, slots=True, eq=False)
class ExpertCounts:
    """Tokens per expert and step, from recorders that keep no token identity.

    Attributes
    ----------
    info : TraceInfo
        Model, experts, layers, source.
    counts : ndarray of int64, ``(steps, layers, experts)``
        Non-negative. [tokens]
    """

    info: TraceInfo
    counts: Counts

    def __post_init__(self) -> None:
        accepted = ("steps", self.info.num_layers, self.info.num_experts)
        if self.counts.ndim != 3 or self.counts.shape[1:] != accepted[1:] or not self.counts.shape[0]:
            raise InputError.at("counts", self.counts.shape, f"a shape {accepted} with at least one step")

    def total(self) -> Counts:
        """Sum over steps, ``(layers, experts)``. [tokens]"""
        return np.asarray(self.counts.sum(axis=0), np.int64)


def count_experts(expert_ids: ExpertIds, num_experts: int) -> Counts:
    """Tokens that chose each expert.

    Parameters
    ----------
    expert_ids : ndarray of uint8 or uint16, ``(tokens, layers, slots)``
        Ids; anything >= ``num_experts`` is an empty slot and not counted.
    num_experts : int
        Experts a layer. [-]

    Returns
    -------
    ndarray of int64, ``(layers, experts)``
        Counts. [tokens]
    """
    layers, wide = expert_ids.shape[1], num_experts + 1
    codes = np.minimum(expert_ids, num_experts).astype(np.int32)
    codes += (np.arange(layers, dtype=np.int32) * wide)[:, None]
    return np.bincount(codes.ravel(), minlength=layers * wide).reshape(layers, wide)[:, :-1].astype(np.int64)


def check_against(
    trace: RoutingTrace | ExpertCounts,
    *,
    model: str | None = None,
    num_experts: int | None = None,
    num_layers: int | None = None,
    top_k: int | None = None,
) -> None:
    """Refuse a trace that is not of the asked shape; what is None is not compared.

    Raises
    ------
    InputError
        Every mismatch, one line each.
    """
    info = trace.info
    slots = trace.top_k if isinstance(trace, RoutingTrace) else None
    pairs = (
        ("model", info.model, model),
        ("num_experts", info.num_experts, num_experts),
        ("num_layers", info.num_layers, num_layers),
        ("top_k", slots, top_k),
    )
    problems = [
        Problem(f"trace.{name}", f"got {got!r}; accepted: {wanted!r} (the model's own)")
        for name, got, wanted in pairs
        if wanted is not None and got is not None and got != wanted
    ]
    if problems:
        raise InputError(problems, source=f"routing trace of {info.model!r}")


def _index_of(name: str, known: tuple[str, ...], field: str) -> int:
    if name not in known:
        message = f"got {name!r}{did_you_mean(name, known)}; accepted: {', '.join(known)}"
        raise InputError([Problem(field, message)])
    return known.index(name)


def _shape_problems(trace: RoutingTrace) -> list[Problem]:
    """Contradictions that need no look at the values."""
    info, ids = trace.info, trace.expert_ids
    if ids.ndim != 3 or ids.dtype not in (np.uint8, np.uint16) or 0 in ids.shape:
        accepted = "uint8 or uint16 (tokens, layers, slots), none of them 0"
        return [Problem("expert_ids", f"got {ids.dtype} {ids.shape}; accepted: {accepted}")]
    problems = info_problems(info)
    tokens, layers, slots = ids.shape
    if layers != info.num_layers:
        problems.append(
            Problem("layer_indices", f"got {info.num_layers} layers; accepted: {layers} of expert_ids")
        )
    if not 1 <= info.num_experts <= empty_slot(ids.dtype):
        problems.append(
            Problem(
                "num_experts",
                f"got {info.num_experts}; accepted: 1 to {empty_slot(ids.dtype)} with {ids.dtype} ids",
            )
        )
    if slots > info.num_experts:
        problems.append(
            Problem("expert_ids", f"got {slots} slots; accepted: at most num_experts={info.num_experts}")
        )
    wanted: dict[str, type[np.generic]] = {
        "request_index": np.int32,
        "position": np.int32,
        "step_index": np.int32,
    }
    wanted |= {"phase": np.uint8, "domain_index": np.uint8}
    for name, dtype in wanted.items():
        array = getattr(trace, name)
        if array.shape != (tokens,) or array.dtype != dtype:
            accepted = f"{np.dtype(dtype)} ({tokens},)"
            problems.append(Problem(name, f"got {array.dtype} {array.shape}; accepted: {accepted}"))
    weights = trace.gate_weights
    if weights is not None and (weights.shape != ids.shape or weights.dtype != np.float16):
        problems.append(
            Problem("gate_weights", f"got {weights.dtype} {weights.shape}; accepted: float16 {ids.shape}")
        )
    return problems
