"""Duplex: a processor with near-memory units against the processor alone, continuous batching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.evidence import rng_for
from moesim.hardware.load import load_device
from moesim.offload.near_memory import Engine, better_engine_s, shared_experts_s
from moesim.units import MS, NS, US
from moesim.validate.claims import Claim

Data = Mapping[str, Any]
DRAWS = 16
BYTES = 2
ALL_REDUCE_S = 6 * US
PJ = NS * MS
BANK = "duplex_bank_pim"
"""Its experts are not split: a layer goes to one engine."""


def duplex_claims(data: Data, seed: int) -> list[Claim]:
    """Throughput and energy over a grid of lengths and batches, and the published cells."""
    given = data["duplex"]
    source = given["source"]
    grid = [
        (model, length, batch)
        for model in given["models"]
        for length in given["lengths"]
        for batch in given["batches"]
    ]
    ratios, saved = [], []
    for model, length, batch in grid:
        alone = iteration(given, model, length, batch, None, seed)
        both = iteration(given, model, length, batch, "duplex_logic_pim", seed)
        ratios.append(alone[0] / both[0])
        saved.append(1 - both[1] / alone[1])
    note = f"{len(grid)} cells: three models, lengths in = out, three batches"
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


def iteration(
    given: Data, model: Data, length: int, batch: int, near_name: str | None, seed: int
) -> tuple[float, float]:
    """Seconds and joules of a decode step of one device, with its share of prefill.

    A request of ``length`` tokens in and out is prefilled every ``length / batch`` steps; attention
    sees one and a half times ``length`` on average; routing is uniform.
    """
    xpu = _engine(given, "duplex_xpu", "xpu")
    near = None if near_name is None else _engine(given, near_name, near_name)
    share, hidden = model["devices"], model["hidden"]
    head = hidden // model["heads"]
    kv_width = model["kv_heads"] * head
    projections = 2 * hidden * hidden + 2 * hidden * kv_width
    context = 1.5 * length
    decode_s = energy = 0.0
    linear = _gemm(projections / share, batch)
    kv_bytes = batch * context * 2 * kv_width * BYTES / share
    kv_flops = batch * context * 4 * hidden / share
    expert = (3 if model["gated"] else 2) * hidden * model["width"]
    dense = model["layers"] - model["moe_layers"]
    for flops, moved, times, may_move in (
        (*linear, model["layers"], False),
        (kv_flops, kv_bytes, model["layers"], True),
        (*_gemm(expert / share, batch), dense, True),
    ):
        seconds, on_near = better_engine_s(flops, moved, xpu, near if may_move else None)
        decode_s += times * seconds
        engine = near if on_near and near is not None else xpu
        energy += times * engine.joules(flops, moved)
    seconds, joules = _moe(model, expert, batch, xpu, near, seed, split=near_name != BANK)
    # a step that prefills gives every expert enough tokens for the processor
    mixed = min(1.0, batch / length)
    alone_s, alone_j = _moe(model, expert, batch, xpu, None, seed, split=False)
    seconds, joules = (
        (1 - mixed) * pure + mixed * alone for pure, alone in ((seconds, alone_s), (joules, alone_j))
    )
    decode_s += model["moe_layers"] * seconds
    energy += model["moe_layers"] * joules
    decode_s += model["layers"] * 2 * (ALL_REDUCE_S + 2 * batch * hidden * BYTES / given["link_bytes_per_s"])
    active = model["layers"] * projections + (model["moe_layers"] * model["top_k"] + dense) * expert
    prefill_flops = length * (2 * active + 2 * model["layers"] * length * hidden) / share
    prefills = batch / length
    decode_s += prefills * prefill_flops / xpu.flops_per_s
    energy += prefills * prefill_flops * xpu.flop_j
    return decode_s, energy


def _moe(
    model: Data, expert: float, batch: int, xpu: Engine, near: Engine | None, seed: int, *, split: bool
) -> tuple[float, float]:
    """Experts of a layer under uniform routing, mean over draws; sharded over all devices.

    ``split``: both engines work together on the sorted experts, else the whole layer goes to one.
    """
    rng = rng_for(seed, f"validate/duplex/{model['name']}/{batch}")
    chosen = np.argsort(rng.random((DRAWS, batch, model["experts"])), axis=-1)[..., : model["top_k"]]
    tokens = np.stack([np.bincount(c.ravel(), minlength=model["experts"]) for c in chosen]).astype(np.float64)
    flops = 2 * tokens * expert / model["devices"]
    moved = np.where(tokens > 0, expert * BYTES / model["devices"], 0.0)
    if near is None or not split:
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
