"""Throughput-oriented offload: all weights stream past the device once a pass, under large batches.

Pure formulas of named quantities: module-wise batching with a buffer of two layers (FlexGen, MoE-Gen,
MoE-Lightning), overlapped prefill and decode with attention on the CPU (MoE-Lens), a ring of resident
sections (SE-MoE), tasks grouped by model (Symbolic-MoE).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from moesim.errors import InputError
from moesim.model.dtypes import Dtypes, bytes_per_element
from moesim.model.layer_ops import forward_flops_per_token
from moesim.model.parameters import kv_bytes_per_token, weight_bytes
from moesim.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class StreamedLayer:
    """What one layer of a streamed pass takes on each resource, all of which run at once.

    Attributes
    ----------
    link_s : float
        Its weights over the link. [s]
    device_s : float
        Its products on the device, for all micro-batches. [s]
    cpu_s : float
        Attention over keys and values in host memory. [s]
    """

    link_s: float
    device_s: float
    cpu_s: float = 0.0

    @property
    def seconds(self) -> float:
        """With two layers' buffers the slowest resource sets the pace. [s]"""
        return max(self.link_s, self.device_s, self.cpu_s)


def streamed_layer(
    *,
    weight_bytes: float,
    resident_fraction: float,
    link_bytes_per_s: float,
    flops: float,
    flops_per_s: float,
    kv_bytes: float = 0.0,
    host_bytes_per_s: float = float("inf"),
) -> StreamedLayer:
    """Times of one layer.

    Parameters
    ----------
    weight_bytes, resident_fraction : float
        Weights of the layer, and the share that stays on the device. [bytes], [-]
    link_bytes_per_s : float
        Host to device. [bytes/s]
    flops, flops_per_s : float
        Work of all micro-batches on the device. [FLOP], [FLOP/s]
    kv_bytes, host_bytes_per_s : float
        Keys and values of all sequences, read by the CPU at what the link leaves of host memory. The
        link reads the weights from the same memory. [bytes], [bytes/s]
    """
    moved = weight_bytes * (1 - resident_fraction)
    link_s = moved / link_bytes_per_s
    # the memory serves both; the CPU gets what the copies leave while they last
    cpu_s = (kv_bytes + (moved if kv_bytes else 0.0)) / host_bytes_per_s
    return StreamedLayer(link_s, flops / flops_per_s, cpu_s)


def generation_tokens_per_s(*, sequences: float, generated: int, pass_s: float) -> float:
    """Output rate where the first token comes from prefill, which is not counted: MoE-Lightning's figure."""
    return sequences * generated / ((generated - 1) * pass_s)


def saturating_tokens(
    *,
    flops_per_s: float,
    link_bytes_per_s: float,
    num_experts: int,
    top_k: int,
    weight_bytes_each: float = 2.0,
) -> float:
    """Tokens of a pass at which the device takes as long as the link with all experts' weights. [tokens]

    A weight of ``weight_bytes_each`` bytes serves ``2 k / E`` FLOP a token (MoE-Lens, stage 1).
    """
    return flops_per_s / link_bytes_per_s * num_experts / top_k * weight_bytes_each / 2


def overlapped_tokens_per_s(
    *,
    prompt: float,
    generated: float,
    kv_capacity_tokens: float,
    pass_s: float,
    device_tokens_per_s: float,
) -> float:
    """Upper bound of generated tokens a second with prefill and decode mixed in one pass (MoE-Lens, stage 2).

    Requests enter as others leave, so a request holds ``prompt + generated / 2`` tokens of the cache
    on average; a pass advances each of them by one token and prefills those that enter.

    Parameters
    ----------
    prompt, generated : float
        Tokens of a request. [tokens]
    kv_capacity_tokens : float
        Tokens that the host's cache holds. [tokens]
    pass_s : float
        One pass of the weights over the link. [s]
    device_tokens_per_s : float
        Tokens, prompt or generated, that the device computes. [tokens/s]
    """
    requests = kv_capacity_tokens / (prompt + generated / 2)
    share = (prompt + generated) / generated
    return min(requests / pass_s, device_tokens_per_s / share)


def separate_tokens_per_s(
    *,
    prompt: float,
    generated: float,
    kv_capacity_tokens: float,
    pass_s: float,
    device_tokens_per_s: float,
) -> float:
    """The same where a whole batch is prefilled, then decoded: every request reserves all its tokens."""
    requests = kv_capacity_tokens / (prompt + generated)
    prefill_s = max(pass_s, requests * prompt / device_tokens_per_s)
    decode_s = generated * max(pass_s, requests / device_tokens_per_s)
    return requests * generated / (prefill_s + decode_s)


def ring_pass_s(*, sections: int, resident: int, compute_s: float, load_s: float) -> float:
    """A pass over ``sections`` equal sections with ``resident`` slots in a ring (SE-MoE). [s]

    Section ``i`` runs in slot ``i mod K``; when it is through, section ``i + K`` is loaded there. With
    every section resident nothing is loaded.
    """
    if resident >= sections:
        return sections * compute_s
    done = [0.0] * sections
    loaded_at = 0.0
    now = 0.0
    for section in range(2 * sections):
        # the second round is the steady state: the slot was freed one ring earlier
        freed = done[(section - resident) % sections] if section >= resident else 0.0
        loaded_at = max(loaded_at, freed) + (load_s if section >= resident else 0.0)
        start = max(now, loaded_at if section >= resident else 0.0)
        now = start + compute_s
        done[section % sections] = now
        if section == sections - 1:
            first_round = now
    return now - first_round


def grouped_makespan_s(
    choices: Sequence[Sequence[int]], *, load_s: float, run_s: float, num_devices: int = 1
) -> float:
    """Samples that each need some models, sorted by model: every used model is loaded once (Symbolic-MoE)."""
    work: dict[int, int] = {}
    for chosen in choices:
        for model in chosen:
            work[model] = work.get(model, 0) + 1
    free = [0.0] * num_devices
    for _, uses in sorted(work.items(), key=lambda item: (-item[1], item[0])):
        device = free.index(min(free))
        free[device] += load_s + uses * run_s
    return max(free)


def sequential_loads(choices: Sequence[Sequence[int]]) -> int:
    """Loads sample by sample: whenever another model was there before."""
    order = [model for chosen in choices for model in chosen]
    return sum(model != before for model, before in zip(order, [-1, *order], strict=False))


def sequential_makespan_s(choices: Sequence[Sequence[int]], *, load_s: float, run_s: float) -> float:
    """The same sample by sample."""
    return sequential_loads(choices) * load_s + sum(len(chosen) for chosen in choices) * run_s


@dataclass(frozen=True, slots=True)
class StreamedBounds:
    """Upper bounds of a model whose weights all pass the link each pass (MoE-Lens).

    Attributes
    ----------
    weight_bytes, pass_s : float
        What passes, and how long it takes. [bytes], [s]
    saturating_tokens : float
        Tokens of a pass that keep the device as long as the link. [tokens]
    cpu_attention_s : float
        Reading every cached key and value once, with the weights from the same memory. [s]
    overlapped_tokens_per_s, separate_tokens_per_s : float
        Generated tokens with prefill and decode mixed in a pass, and batch after batch. [tokens/s]
    """

    weight_bytes: float
    pass_s: float
    saturating_tokens: float
    cpu_attention_s: float
    overlapped_tokens_per_s: float
    separate_tokens_per_s: float

    def metrics(self) -> dict[str, dict[str, float | str]]:
        """Values and units by name."""
        units = {"bytes": "bytes", "per_s": "tokens_per_s", "tokens": "tokens"}
        return {
            name: {
                "value": value,
                "unit": next((unit for end, unit in units.items() if name.endswith(end)), "s"),
            }
            for name, value in asdict(self).items()
        }


def streamed_bounds(
    model: ModelSpec,
    dtypes: Dtypes,
    *,
    flops_per_s: float,
    link_bytes_per_s: float,
    host_bytes_per_s: float,
    prompt: int,
    generated: int,
    kv_capacity_bytes: float,
) -> StreamedBounds:
    """Bounds of a model on a device, a link and a host memory; see :class:`StreamedBounds`.

    Raises
    ------
    InputError
        A model without routed experts.
    """
    if not model.moe_layers:
        raise InputError.at("model", model.name, "a model with routed experts")
    weights = weight_bytes(model, dtypes)
    capacity = kv_capacity_bytes / kv_bytes_per_token(model, dtypes.kv)
    attention_s = (kv_capacity_bytes + weights) / host_bytes_per_s
    # the link waits for the CPU where attention is longer
    pass_s = max(weights / link_bytes_per_s, attention_s)
    rates = {
        "prompt": prompt,
        "generated": generated,
        "kv_capacity_tokens": capacity,
        "pass_s": pass_s,
        "device_tokens_per_s": flops_per_s / forward_flops_per_token(model, prompt),
    }
    return StreamedBounds(
        weights,
        pass_s,
        saturating_tokens(
            flops_per_s=flops_per_s,
            link_bytes_per_s=link_bytes_per_s,
            num_experts=model.num_experts,
            top_k=model.top_k,
            weight_bytes_each=bytes_per_element(dtypes.experts),
        ),
        attention_s,
        overlapped_tokens_per_s(**rates),
        separate_tokens_per_s(**rates),
    )
