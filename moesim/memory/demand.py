"""What a cache of experts is asked for: the distinct experts of every pass and layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.traces import RoutingTrace


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Experts needed by each pass in each layer, all of them looked up together.

    Attributes
    ----------
    num_experts : int
        Experts a layer; the id that marks an empty place. [-]
    ids : ndarray of int32, ``(passes, layers, places)``
        Distinct experts; ``num_experts`` where a place is empty.
    tokens : ndarray of int32, ``(passes, layers, places)``
        Tokens of the pass that chose the expert. [tokens]
    new_sequence : ndarray of bool, ``(passes,)``
        A request begins with this pass.
    weights : ndarray of float32, ``(passes, layers, places)``, optional
        Gate weight of the choice, the largest over the tokens of the pass. [-]
    prior_counts : ndarray of int64, ``(layers, experts)``, optional
        Tokens that chose each expert in earlier traffic, for policies that pin. [tokens]
    prompt_counts : ndarray of int64, ``(layers, experts)``, optional
        The same of the prompt that the passes follow. [tokens]
    layers_per_row : int
        Model layers that share one row of a pooled cache; 1 for a cache a layer. [-]
    """

    num_experts: int
    ids: NDArray[np.int32]
    tokens: NDArray[np.int32]
    new_sequence: NDArray[np.bool_]
    weights: NDArray[np.float32] | None = None
    prior_counts: NDArray[np.int64] | None = None
    layers_per_row: int = 1
    prompt_counts: NDArray[np.int64] | None = None

    @property
    def num_passes(self) -> int:
        """Passes. [-]"""
        return int(self.ids.shape[0])

    @property
    def num_layers(self) -> int:
        """Layers (rows of the cache). [-]"""
        return int(self.ids.shape[1])

    @property
    def largest(self) -> int:
        """Most experts that one pass needs in one layer. [experts]"""
        return int((self.ids < self.num_experts).sum(axis=-1).max())

    def pooled(self) -> Demand:
        """The same demand on one cache of all layers: a row of ``layers * experts``, layer after layer."""
        passes, layers, places = self.ids.shape
        empty = self.ids == self.num_experts
        ids = self.ids + (np.arange(layers, dtype=np.int32) * self.num_experts)[:, None]
        ids[empty] = layers * self.num_experts
        shape = (passes * layers, 1, places)
        starts = np.zeros(passes * layers, np.bool_)
        starts[::layers] = self.new_sequence
        return replace(
            self,
            num_experts=layers * self.num_experts,
            ids=ids.reshape(shape),
            tokens=self.tokens.reshape(shape),
            new_sequence=starts,
            weights=None if self.weights is None else self.weights.reshape(shape),
            prior_counts=None if self.prior_counts is None else self.prior_counts.reshape(1, -1),
            layers_per_row=layers,
            prompt_counts=None if self.prompt_counts is None else self.prompt_counts.reshape(1, -1),
        )


def demand_of(
    trace: RoutingTrace,
    tokens_per_pass: int = 1,
    *,
    max_passes: int | None = None,
    prior_counts: NDArray[np.int64] | None = None,
) -> Demand:
    """Demand of a trace served ``tokens_per_pass`` consecutive tokens at a time; a rest is left out.

    Raises
    ------
    InputError
        Fewer tokens than one pass needs.
    """
    passes = trace.num_tokens // tokens_per_pass if tokens_per_pass >= 1 else 0
    if passes < 1:
        accepted = f"1 to the {trace.num_tokens} tokens of the trace"
        raise InputError.at("tokens_per_pass", tokens_per_pass, accepted)
    passes = min(passes, max_passes) if max_passes else passes
    used = trace.take(slice(0, passes * tokens_per_pass))
    request = np.asarray(used.request_index)[::tokens_per_pass]
    starts = np.append(True, np.diff(request) > 0)
    if tokens_per_pass == 1:
        ids = np.minimum(used.expert_ids, trace.num_experts).astype(np.int32)
        weights = None if used.gate_weights is None else np.asarray(used.gate_weights, np.float32)
        tokens = (ids < trace.num_experts).astype(np.int32)
        return Demand(trace.num_experts, ids, tokens, starts, weights, prior_counts)
    each = [slice(at * tokens_per_pass, (at + 1) * tokens_per_pass) for at in range(passes)]
    ids, tokens = _unions(np.asarray(used.expert_ids), trace.num_experts, each, tokens_per_pass)
    return Demand(trace.num_experts, ids, tokens, starts, None, prior_counts)


def demand_of_batches(
    trace: RoutingTrace,
    batches: Sequence[NDArray[np.int64]],
    *,
    prior_counts: NDArray[np.int64] | None = None,
) -> Demand:
    """Demand of passes that each serve the given tokens of a trace: batches that a policy formed."""
    most = max(len(batch) for batch in batches)
    ids, tokens = _unions(np.asarray(trace.expert_ids), trace.num_experts, batches, most)
    starts = np.arange(len(batches)) == 0
    return Demand(trace.num_experts, ids, tokens, starts, None, prior_counts)


def _unions(
    expert_ids: NDArray[np.unsignedinteger],
    num_experts: int,
    batches: Sequence[slice | NDArray[np.int64]],
    most: int,
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Distinct experts of each pass (``most`` tokens or fewer) and layer, most used first, and tokens."""
    _, layers, slots = expert_ids.shape
    passes = len(batches)
    wide = num_experts + 1
    places = min(num_experts, most * slots)
    ids = np.full((passes, layers, places), num_experts, np.int32)
    tokens = np.zeros((passes, layers, places), np.int32)
    row = (np.arange(layers, dtype=np.int64) * wide)[:, None]
    for index, batch in enumerate(batches):
        part = np.minimum(expert_ids[batch, :, :], num_experts)
        counts = np.bincount((part + row).ravel(), minlength=layers * wide).reshape(layers, wide)[:, :-1]
        order = np.argsort(-counts, axis=-1, kind="stable")[:, :places]
        found = np.take_along_axis(counts, order, axis=-1)
        tokens[index] = found
        ids[index] = np.where(found > 0, order, num_experts)
    width = max(1, int((tokens > 0).sum(axis=-1).max()))
    return ids[..., :width], tokens[..., :width]
