"""Duplex: a processor with near-memory units against the processor alone, continuous batching."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.evidence import rng_for
from moesim.hardware.load import load_device
from moesim.offload.near_memory import Engine, better_engine_s, shared_experts_s
from moesim.units import MS, NS
from moesim.validate.claims import Claim

Data = Mapping[str, Any]
DRAWS = 16
BYTES = 2
PJ = NS * MS
BANK = "duplex_bank_pim"
"""Does not work together with the processor: a layer goes to one engine."""


def duplex_claims(data: Data, seed: int) -> list[Claim]:
    """Throughput and energy over a grid of lengths and batches, and the published cells."""
    given = data["duplex"]
    source = given["source"]
    grid = [
        (model, length, batch)
        for model in given["models"]
        for length in given["lengths"]
        for batch in given["batches"]
        if _fits(model, length, batch)
    ]
    ratios, saved = [], []
    for model, length, batch in grid:
        alone = iteration(given, model, length, batch, None, seed)
        both = iteration(given, model, length, batch, "duplex_logic_pim", seed)
        ratios.append(alone[0] / both[0])
        saved.append(1 - both[1] / alone[1])
    note = f"{len(grid)} cells that fit: three models, lengths in = out, three batches"
    throughput, energy = given["throughput"], given["energy_saved"]
    found = [
        Claim(f"Duplex {what}", source, unit, published, float(ours), 0.2, note=note)
        for what, unit, published, ours in (
            ("throughput, mean", "ratio", throughput["mean"], np.mean(ratios)),
            ("throughput, largest", "ratio", throughput["max"], max(ratios)),
            ("energy saved, mean", "fraction", energy["mean"], np.mean(saved)),
            ("energy saved, largest", "fraction", energy["max"], max(saved)),
        )
    ]
    mixtral = given["models"][0]
    cells = [("Bank-PIM", BANK, cell) for cell in given["bank_pim"]]
    cells.append(("Duplex", "duplex_logic_pim", given["duplex_cell"]))
    for name, unit, cell in cells:
        length, batch = cell["length"], cell["batch"]
        alone = iteration(given, mixtral, length, batch, None, seed)
        near = iteration(given, mixtral, length, batch, unit, seed)
        title = f"{name} on Mixtral, batch {batch}, {length} in and out"
        found.append(Claim(title, source, "ratio", cell["ratio"], alone[0] / near[0], 0.2))
    return found


@dataclass(frozen=True)
class _Device:
    """A processor with or without units near memory.

    ``together``: both work at once, on the sorted experts of a layer and on attention of prompts and of
    decoding; else a layer goes to one of them. ``seed`` draws the routing.
    """

    xpu: Engine
    near: Engine | None
    together: bool
    seed: int


def iteration(
    given: Data, model: Data, length: int, batch: int, near_name: str | None, seed: int
) -> tuple[float, float]:
    """Seconds and joules of a step of one device under continuous batching.

    A request of ``length`` tokens in and out joins every ``length / batch`` steps, and that step works on
    its prompt too; attention sees one and a half times ``length`` on average; routing is uniform.
    """
    near = None if near_name is None else _engine(given, near_name, near_name)
    device = _Device(_engine(given, "duplex_xpu", "xpu"), near, near_name != BANK, seed)
    joins = min(1.0, batch / length)
    plain, mixed = (_step(given, model, batch, length, new, device) for new in (0, length))
    seconds, joules = ((1 - joins) * a + joins * b for a, b in zip(plain, mixed, strict=True))
    return seconds, joules


def _fits(model: Data, length: int, batch: int) -> bool:
    """Whether weights, and keys and values of the mean length, have room on the devices."""
    weights = model["layers"] * _projections(model) + _expert(model) * (
        model["moe_layers"] * model["experts"] + model["layers"] - model["moe_layers"]
    )
    cached = batch * 1.5 * length * model["layers"] * 2 * _kv_width(model)
    room = model["devices"] * load_device("duplex_xpu").main_memory.capacity_bytes
    return bool((weights + cached) * BYTES <= room)


def _kv_width(model: Data) -> int:
    return int(model["kv_heads"] * model["hidden"] // model["heads"])


def _projections(model: Data) -> int:
    """Weights around attention in a layer. [-]"""
    return int(2 * model["hidden"] * (model["hidden"] + _kv_width(model)))


def _expert(model: Data) -> int:
    """Weights of an expert, or of a dense layer. [-]"""
    return int((3 if model["gated"] else 2) * model["hidden"] * model["width"])


def _step(
    given: Data, model: Data, batch: int, length: int, prompt: int, device: _Device
) -> tuple[float, float]:
    """Seconds and joules of a step of ``batch`` decoding sequences and ``prompt`` tokens of a new one.

    Projections are the processor's; decode attention, dense and expert layers go where they are sooner
    through, decode attention near memory beside the prompt's on the processor.
    """
    xpu, near = device.xpu, device.near
    share, hidden = model["devices"], model["hidden"]
    kv_width, projections, expert = _kv_width(model), _projections(model), _expert(model)
    dense = model["layers"] - model["moe_layers"]
    kv_tokens = batch * 1.5 * length / share
    decode = (kv_tokens * 4 * hidden, kv_tokens * 2 * kv_width * BYTES)
    prefill = (2 * prompt * prompt * hidden / share, prompt * 2 * kv_width * BYTES / share)
    tokens = batch + prompt
    attention_s, on_near = better_engine_s(*decode, xpu, near)
    prefill_s, _ = better_engine_s(*prefill, xpu, None)
    together = max if on_near and device.together else sum
    linear_s, _ = better_engine_s(*_gemm(projections / share, tokens), xpu, None)
    dense_s, dense_near = better_engine_s(*_gemm(expert / share, tokens), xpu, near)
    moe_s, moe_j = _moe(model, expert, tokens, device)
    seconds = model["layers"] * (
        linear_s + together((attention_s, prefill_s)) + 2 * _all_reduce_s(given, model, tokens)
    )
    seconds += dense * dense_s + model["moe_layers"] * moe_s
    joules = model["layers"] * (
        xpu.joules(*_gemm(projections / share, tokens))
        + (near if on_near and near is not None else xpu).joules(*decode)
        + xpu.joules(*prefill)
    )
    used = near if dense_near and near is not None else xpu
    joules += dense * used.joules(*_gemm(expert / share, tokens)) + model["moe_layers"] * moe_j
    return seconds, joules


def _all_reduce_s(given: Data, model: Data, tokens: int) -> float:
    """Ring over the devices of a node, with a latency for every hop, as the authors' simulator has it. [s]"""
    devices = min(model["devices"], given["node_devices"])
    nodes = model["devices"] // devices
    part = tokens / nodes * model["hidden"] * BYTES / devices
    return float(2 * (devices - 1) * (given["hop_s"] + part / given["link_bytes_per_s"]))


def _moe(model: Data, expert: float, tokens: int, device: _Device) -> tuple[float, float]:
    """Experts of a layer under uniform routing, mean over draws; sharded over all devices."""
    xpu, near = device.xpu, device.near
    rng = rng_for(device.seed, f"validate/duplex/{model['name']}/{tokens}")
    chosen = np.argsort(rng.random((DRAWS, tokens, model["experts"])), axis=-1)[..., : model["top_k"]]
    load = np.stack([np.bincount(c.ravel(), minlength=model["experts"]) for c in chosen]).astype(np.float64)
    flops = 2 * load * expert / model["devices"]
    moved = np.where(load > 0, expert * BYTES / model["devices"], 0.0)
    if near is None or not device.together:
        engines = [xpu] if near is None else [xpu, near]
        times = [float(engine.seconds(flops, moved).sum(axis=-1).mean()) for engine in engines]
        sooner = engines[int(np.argmin(times))]
        return min(times), sooner.joules(float(flops.sum() / DRAWS), float(moved.sum() / DRAWS))
    seconds, on_xpu = shared_experts_s(flops, moved, xpu, near)
    order = np.argsort(-flops, axis=-1, kind="stable")
    first = np.arange(model["experts"]) < on_xpu[:, None]
    joules = 0.0
    for engine, mask in ((xpu, first), (near, ~first)):
        work = np.take_along_axis(flops, order, -1)[mask].sum() / DRAWS
        read = np.take_along_axis(moved, order, -1)[mask].sum() / DRAWS
        joules += engine.joules(float(work), float(read))
    return float(seconds.mean()), joules


def _gemm(weights: float, rows: float) -> tuple[float, float]:
    return 2 * weights * rows, weights * BYTES


def _engine(given: Data, device_name: str, energy_name: str) -> Engine:
    device = load_device(device_name)
    return Engine(
        device.dense_peak_flops_per_s("fp16"),
        device.main_memory.bandwidth_bytes_per_s,
        given["nj_per_32_bytes"][energy_name] * NS / 32,
        given["pj_per_flop"] * PJ,
    )
