"""Memory of every pipeline stage of a training step, at its fullest moment and on its fullest rank.

Weights, gradients and optimizer states are counted from :class:`~moesim.training.states.States`, activations
from the tensors that :mod:`moesim.training.activations` names, times the microbatches in flight. What an
allocator and a driver take beside that is assumed and said so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.memory.ledger import Ledger
from moesim.model.dtypes import Dtypes, bytes_per_element
from moesim.model.parameters import embedding_parameters, mtp_parameters
from moesim.model.spec import LayerSpec, ModelSpec
from moesim.parallel.train_plan import TrainPlan
from moesim.training.activations import (
    ATTENTION,
    EXPERTS,
    FEED_FORWARD,
    FP32_BYTES,
    Rows,
    Saved,
    kept,
    saved_tensors,
    total,
)
from moesim.training.orders import in_flight
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import Geometry, Schedule
from moesim.training.states import States, kept_bytes
from moesim.units import GIB

CONTEXT_BYTES = 1.5 * GIB
"""Assumed: driver context, workspaces of libraries, buffers of collectives; outside the allocator."""

FRAGMENTATION_FRACTION = 0.05
"""Assumed: what an allocator cannot hand out again, over everything that comes and goes during a step."""

GATHERED_LAYERS = 2
"""Layers whose gathered weights are there at once: one computes, the next is prefetched."""

RESERVE = "context and fragmentation"
HELPED = "weights of helped experts"
HELD = ("activations", "expert activations", HELPED)
"""What microbatches in flight keep."""
COMES_AND_GOES = (
    *HELD,
    "logits and loss",
    "dispatch buffers",
    "working buffers",
)


@dataclass(frozen=True)
class Demand:
    """Everything that a training ledger depends on.

    Attributes
    ----------
    model : ModelSpec
    plan : TrainPlan
    dtypes : Dtypes
        Formats that kernels work in.
    states : States
    recompute : Recompute
    layout : sequence of tuple of int
        Layers of each part of the model; the first part holds the embedding, the last one the head.
    part_of : ndarray of int, ``(stage, chunk)``
        Part that each chunk of each stage holds; two stages may hold the same one (DualPipe).
    in_flight : ndarray, ``(stage, chunk)``
        Most microbatches whose activations of a chunk are kept at once. [-]
    micro_batch_size, sequence_length : int
        Sequences of a microbatch in each attention replica, and their length. [-], [tokens]
    expert_overload : ndarray, ``(stage,)``
        Token copies of the stage's most loaded expert rank over the mean, or the capacity factor. [-]
    helped : mapping of int to ndarray, ``(rank,)``
        Experts of others that each rank of a group helps with, by layer, mean of microbatches: their weights
        stay until the backward pass, which returns their gradients (NousResearch/torchtitan, llep). [-]
    mtp : bool
        Multi-token prediction modules are trained too, on the last part.
    inner_dtype : str
        Format in which inputs of activation functions are kept; by default as they are computed.
    loss_fp32 : bool
        The loss works on an fp32 copy of the logits, else in place (fused).
    first_step : bool
        The very first step: optimizer states appear with its update, after the activations are gone. Reports
        of what a first iteration took, and of runs that ran out of memory in the second, mean this.
    """

    model: ModelSpec
    plan: TrainPlan
    dtypes: Dtypes
    states: States
    recompute: Recompute
    layout: Sequence[tuple[int, ...]]
    part_of: NDArray[np.int64]
    in_flight: NDArray[np.float64]
    micro_batch_size: int
    sequence_length: int
    expert_overload: ArrayLike = 1.0
    helped: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    mtp: bool = False
    inner_dtype: str = ""
    loss_fp32: bool = True
    first_step: bool = False
    _saved: dict[tuple[LayerSpec, Rows, Dtypes], list[Saved]] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @property
    def tokens(self) -> float:
        """Tokens of a microbatch in a tensor-parallel group. [tokens]"""
        return self.micro_batch_size * self.sequence_length / self.plan.cp

    @property
    def head_passes(self) -> int:
        """Times that logits are computed: once, and once a multi-token prediction module. [-]"""
        return 1 + (self.model.num_mtp_layers if self.mtp else 0)

    def overload(self, stage: int) -> float:
        """Of a stage's fullest expert rank. [-]"""
        return float(np.broadcast_to(self.expert_overload, (len(self.part_of),))[stage])

    def rows(self, layer: LayerSpec, overload: float) -> Rows:
        """Rows of a rank in one layer."""
        plan = self.plan
        top_k = layer.moe.experts_per_token if layer.moe else 0.0
        copies = self.tokens / plan.tp * plan.etp * top_k * overload
        return Rows(self.tokens, copies, plan.tp, plan.etp)

    def saved(self, layer: LayerSpec, overload: float) -> list[Saved]:
        """Tensors of a layer; equal layers are counted once."""
        key = (layer, self.rows(layer, overload), self.dtypes)
        if key not in self._saved:
            self._saved[key] = saved_tensors(layer, self.model.hidden_size, *key[1:], self.inner_dtype)
        return self._saved[key]

    def helped_parameters(self, layers: Sequence[int]) -> float:
        """Of the experts that the fullest rank helps with in some layers. [-]"""
        hidden, etp = self.model.hidden_size, self.plan.etp
        own = [(self.helped[i], self.model.layers[i].moe) for i in layers if i in self.helped]
        sizes = [count * moe.expert_parameters(hidden) / etp for count, moe in own if moe is not None]
        return float(np.sum(sizes, axis=0).max()) if sizes else 0.0

    def layers(self, part: int) -> list[LayerSpec]:
        """Layers of a part, those of multi-token prediction behind the others."""
        own = [self.model.layers[i] for i in self.layout[part]]
        last = self.model.mtp_layer if self.mtp and part == len(self.layout) - 1 else None
        return own if last is None else [*own, *[last] * self.model.num_mtp_layers]


def demand_of(schedule: Schedule, num_microbatches: int, plan: TrainPlan, **fields: Any) -> Demand:
    """Demand of a pipeline: where its parts lie, and the microbatches in flight when a stage holds most.

    Parameters
    ----------
    schedule : Schedule
    num_microbatches : int
        Of each replica. [-]
    plan : TrainPlan
    fields
        The other fields of :class:`Demand`.
    """
    geometry = Geometry(plan.pp, num_microbatches, plan.vpp)
    shape = (geometry.num_stages, geometry.num_chunks)
    part_of = np.array([[schedule.part_of(s, c, geometry) for c in range(shape[1])] for s in range(shape[0])])
    draft = Demand(plan=plan, part_of=part_of, in_flight=np.ones(shape), **fields)
    weights = np.zeros(shape)
    for (stage, chunk), part in np.ndenumerate(part_of):
        weights[stage, chunk] = sum(_activations(draft, int(part), draft.overload(stage)))
    flight = in_flight(schedule, geometry, weights=weights)
    return replace(draft, in_flight=flight.astype(np.float64))


def train_ledger(
    demand: Demand,
    *,
    capacity_bytes: float,
    context_bytes: float = CONTEXT_BYTES,
    fragmentation_fraction: float = FRAGMENTATION_FRACTION,
) -> Ledger:
    """Bytes by part and stage, ``(stage,)``: of the stage's fullest rank at its fullest moment.

    Parameters
    ----------
    demand : Demand
    capacity_bytes : float
        Of one device. [bytes]
    context_bytes, fragmentation_fraction : float
        What is not the framework's; lost of what comes and goes. [bytes], [-]
    """
    activations = kept_activations(demand)
    stages = [_stage(demand, stage, activations[stage]) for stage in range(len(demand.part_of))]
    names = dict.fromkeys(name for stage in stages for name in stage)
    parts = {name: np.array([stage.get(name, 0.0) for stage in stages], dtype=np.float64) for name in names}
    moving = np.sum([parts[name] for name in COMES_AND_GOES if name in parts], axis=0)
    parts[RESERVE] = context_bytes + fragmentation_fraction * moving
    return Ledger(parts, capacity_bytes)


def allocated_bytes(ledger: Ledger) -> NDArray[np.float64]:
    """What a framework's allocator reports at its peak, ``(stage,)``: all but the reserve. [bytes]"""
    return ledger.need_bytes - ledger.parts[RESERVE]


def _stage(demand: Demand, stage: int, activations: NDArray[np.float64]) -> dict[str, float]:
    """Parts of one stage: what is always there, and the fullest of three moments."""
    parts = [int(part) for part in demand.part_of[stage]]
    always, updated = _states(demand, parts)
    overload = demand.overload(stage)
    held = {
        name: size for name, size in zip(HELD, activations.tolist(), strict=True) if size or name != HELPED
    }
    over = dict.fromkeys(held, 0.0)
    if demand.first_step:
        held["optimizer"] = 0.0
    is_last = len(demand.layout) - 1 in parts
    moments = [
        held | _layer_moment(demand, parts, overload),
        held | ({"logits and loss": _loss(demand)} if is_last else {}),
        over | _update_moment(demand.states, updated),
    ]
    return max((always | moment for moment in moments), key=lambda parts: sum(parts.values()))


def _states(demand: Demand, parts: Sequence[int]) -> tuple[dict[str, float], tuple[float, float]]:
    """Weights, gradients, optimizer, gathered weights of a rank; dense and expert parameters it updates."""
    plan, states = demand.plan, demand.states
    sums = dict.fromkeys(("weights", "gradients", "optimizer"), 0.0)
    updated = {True: 0.0, False: 0.0}
    for part in parts:
        for is_expert, count, replicas, dtype in _groups(demand, part):
            each = kept_bytes(states, replicas, dtype)
            sums["weights"] += count * each.weights
            sums["gradients"] += count * each.gradients
            sums["optimizer"] += count * each.optimizer
            updated[is_expert] += count * states.share("optimizer", replicas) * (1 - states.offload_fraction)
    layers = [layer for part in parts for layer in demand.layers(part)]
    gathered = _gathered(demand, layers) if plan.stage_size > 1 else 0.0
    return sums | ({"gathered weights": gathered} if gathered else {}), (updated[False], updated[True])


def _groups(demand: Demand, part: int) -> list[tuple[bool, float, int, str]]:
    """Of each kind in a part: routed experts or not, parameters of one rank, replicas, format of products."""
    model, plan, dtypes = demand.model, demand.plan, demand.dtypes
    hidden, last = model.hidden_size, len(demand.layout) - 1
    replicas = plan.dp * plan.cp
    dense = experts = 0.0
    for layer in demand.layers(part):
        own, routed = layer_parameters(layer, hidden, plan)
        dense, experts = dense + own, experts + routed
    tables = int(part == 0) + int(part == last and not (model.tied_embeddings and last == 0))
    table = tables * embedding_parameters(model) / plan.tp
    if part == last:
        dense += hidden
        if demand.mtp and model.mtp_layer is not None:
            joining = mtp_parameters(model) - model.mtp_layer.parameters(hidden)
            dense += model.num_mtp_layers * joining
    return [
        (False, dense, replicas, dtypes.weights),
        (False, table, replicas, ""),
        (True, experts, plan.edp, dtypes.experts),
    ]


def layer_parameters(layer: LayerSpec, hidden: int, plan: TrainPlan) -> tuple[float, float]:
    """Parameters of a layer on one rank: replicated over ``dp * cp`` ranks, and over ``edp``. [-]

    Shared experts are divided like a dense part, the router is on every rank.
    """
    dense = float(layer.mixer_parameters(hidden, plan.tp) + layer.norm_parameters)
    moe = layer.moe
    if moe is None:
        return dense + (layer.ffn.parameters(hidden) / plan.tp if layer.ffn else 0.0), 0.0
    if layer.again:
        return dense + moe.router_parameters(hidden), 0.0
    shared = moe.shared.parameters(hidden) if moe.shared else 0
    dense += moe.common_parameters(hidden) - shared + shared / plan.tp
    return dense, moe.num_experts / (plan.ep * plan.etp) * moe.expert_parameters(hidden)


def _gathered(demand: Demand, layers: Sequence[LayerSpec]) -> float:
    """Whole weights of the layers at work, where ranks keep shares only, and a whole layer's gradients."""
    plan, states, hidden = demand.plan, demand.states, demand.model.hidden_size
    if not layers:
        return 0.0
    copies = _copies(demand, layers)
    if states.share("gradients", 2) == 1.0:
        return copies
    sizes = [layer_parameters(layer, hidden, plan) for layer in layers]
    foreign = states.sharding == "fssdp"
    whole = [dense + (0.0 if foreign else experts) for dense, experts in sizes]
    result = max(whole) * states.gradient_bytes
    if states.share("weights", 2) < 1.0:
        result += GATHERED_LAYERS * max(whole) * states.parameter_bytes
    return result + copies


def _copies(demand: Demand, layers: Sequence[LayerSpec]) -> float:
    """Weights of materialised experts: of every layer, or of two where they are gathered anew."""
    plan, states, hidden = demand.plan, demand.states, demand.model.hidden_size
    expert = [layer.moe.expert_parameters(hidden) / plan.etp if layer.moe else 0.0 for layer in layers]
    there = sorted(expert, reverse=True)[:GATHERED_LAYERS] if states.rematerialise else expert
    return states.materialised_experts * sum(there) * states.parameter_bytes


def kept_activations(demand: Demand) -> NDArray[np.float64]:
    """What all microbatches in flight keep, ``(stage, part of HELD)``. [bytes]"""
    result = np.zeros((len(demand.part_of), len(HELD)))
    known: dict[tuple[int, float], tuple[float, float, float]] = {}
    for (stage, chunk), part in np.ndenumerate(demand.part_of):
        key = (int(part), demand.overload(stage))
        if key not in known:
            known[key] = _activations(demand, *key)
        result[stage] += demand.in_flight[stage, chunk] * np.array(known[key])
    return result


def _activations(demand: Demand, part: int, overload: float) -> tuple[float, float, float]:
    """Kept bytes of one microbatch in a part, as :data:`HELD`. [bytes]"""
    model, recompute = demand.model, demand.recompute
    wide = bytes_per_element(demand.dtypes.activations)
    dense = experts = 0.0
    layers = demand.layers(part)
    for position, layer in enumerate(layers):
        tensors = demand.saved(layer, overload)
        everything = kept(tensors, recompute, position)
        routed = kept([t for t in tensors if t.piece == EXPERTS], recompute, position)
        dense, experts = dense + everything - routed, experts + routed
    if part == len(demand.layout) - 1:
        rows = demand.tokens / demand.plan.tp
        # input of the final norm, and of the head; a module joins two normed inputs by one projection
        widths = 2 + (4 if demand.mtp else 0) * model.num_mtp_layers
        dense += widths * rows * model.hidden_size * wide
    # an exchange that is run again sends the weights again
    stays = [i for at, i in enumerate(demand.layout[part]) if not recompute.reruns("dispatch", at)]
    helped = demand.helped_parameters(stays)
    return dense, experts, helped * bytes_per_element(demand.dtypes.experts)


def _loss(demand: Demand) -> float:
    """Logits of a microbatch, and their fp32 copy that becomes the gradient. [bytes]"""
    each = bytes_per_element(demand.dtypes.activations) + (FP32_BYTES if demand.loss_fp32 else 0.0)
    return demand.head_passes * demand.tokens * demand.model.vocab_size / demand.plan.tp * each


def _layer_moment(demand: Demand, parts: Sequence[int], overload: float) -> dict[str, float]:
    """Buffers of the hungriest layer while its backward pass runs, and gradients of helped experts."""
    kinds = {layer for part in parts for layer in demand.layers(part)}
    moments = [_layer_buffers(demand, layer, overload) for layer in kinds]
    fullest = max(moments, key=lambda moment: sum(moment.values()), default={})
    helped = max((demand.helped_parameters([i]) for part in parts for i in demand.layout[part]), default=0.0)
    if helped:
        fullest["working buffers"] += helped * demand.states.gradient_bytes
    return fullest


def _layer_buffers(demand: Demand, layer: LayerSpec, overload: float) -> dict[str, float]:
    """Of one layer: what is made again, gradients of the larger piece, gathered rows, tokens on their way."""
    plan, hidden = demand.plan, demand.model.hidden_size
    wide = bytes_per_element(demand.dtypes.activations)
    tensors = demand.saved(layer, overload)
    rows = demand.rows(layer, overload)
    again = (total(tensors) - kept(tensors, demand.recompute, 0)) * demand.recompute.layers_at_once
    gradients = max(total(tensors, piece) for piece in (ATTENTION, FEED_FORWARD, EXPERTS))
    gathered = rows.tokens * hidden * wide if plan.tp > 1 else 0.0
    result = {"working buffers": again + gradients + gathered}
    if layer.moe is not None:
        sent = rows.local * layer.moe.experts_per_token
        result["dispatch buffers"] = (sent + rows.copies) * hidden * wide
    return result


def _update_moment(states: States, updated: Sequence[float]) -> dict[str, float]:
    """What the optimizer casts to fp32 for its update, after the activations are gone. [bytes]

    Megatron-Core casts narrower gradients of all its optimizers first (distrib_optimizer.py). Transformer
    Engine's FusedAdam, which it uses for narrow moments, reads narrow gradients itself but casts its moments
    (fused_adam.py, get_unscaled_state), one optimizer after the other: dense parameters, experts.
    """
    if states.optimizer_bytes == 0:
        return {}
    if bytes_per_element(states.moments) < FP32_BYTES:
        return {"working buffers": max(updated) * states.num_moments * FP32_BYTES}
    if states.gradient_bytes < FP32_BYTES:
        return {"working buffers": sum(updated) * FP32_BYTES}
    return {}
