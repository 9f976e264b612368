"""Claims that a formula and constants reach: sizes, balance points, saturation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from moesim.hardware.load import load_device
from moesim.model import ModelSpec, load
from moesim.model.attention import GroupedQueryAttention
from moesim.model.dtypes import Dtypes
from moesim.model.layer_ops import expert_op, forward_flops_per_token
from moesim.model.parameters import active_parameters, kv_bytes_per_token, total_parameters
from moesim.offload import throughput, variants
from moesim.offload.near_memory import balance_flops_per_byte, reordered_s
from moesim.scenario.expert_bits import allocate_bits
from moesim.units import GB, GIB, GIGA, MS
from moesim.validate.claims import Claim
from moesim.validate.offload_sets.cases import traffic

Data = Mapping[str, Any]
TOKENS = 2048
"""Of the traffic that shows which experts are busy. [tokens]"""


def exact_claims(data: Data, seed: int) -> list[Claim]:
    """All of them."""
    found: list[Claim] = []
    for part in (_lightning, _lens, _flow, _m3vit, _slim, _duplex, _adamoe, _plus_plus):
        found += part(data)
    return found + _mixed(data, seed)


def _lightning(data: Data) -> list[Claim]:
    given = data["moe_lightning"]
    s, source = given["set_up"], given["source"]
    model = load("mixtral_8x7b")
    sequences = s["micro_batch"] * s["micro_batches"]
    kv = kv_bytes_per_token(model, "fp16") / model.num_layers
    layer = throughput.streamed_layer(
        weight_bytes=(s["weights_gib"] - s["other_gib"]) * GIB / s["layers"],
        resident_fraction=s["resident_fraction"],
        link_bytes_per_s=s["link_gib_per_s"] * GIB,
        flops=sequences * forward_flops_per_token(model, s["prompt"]) / model.num_layers,
        flops_per_s=s["flops_per_s"],
        kv_bytes=sequences * (s["prompt"] + s["generated"] / 2) * kv,
        host_bytes_per_s=s["host_gib_per_s"] * GIB,
    )
    pass_s = s["layers"] * layer.seconds
    rate = throughput.generation_tokens_per_s(sequences=sequences, generated=s["generated"], pass_s=pass_s)
    ours = {"layer_s": layer.seconds, "pass_s": pass_s, "tokens_per_s": rate}
    units = {"layer_s": "s", "pass_s": "s", "tokens_per_s": "tokens_per_s"}
    return [
        Claim(f"MoE-Lightning {name}", source, units[name], given[name], value, 0.005)
        for name, value in ours.items()
    ]


def _lens(data: Data) -> list[Claim]:
    given = data["moe_lens"]
    model = load("mixtral_8x7b")
    found = []
    for row in given["rows"]:
        tokens = throughput.saturating_tokens(
            flops_per_s=row["flops_per_s"],
            link_bytes_per_s=given["link_bytes_per_s"],
            num_experts=model.num_experts,
            top_k=model.top_k,
        )
        name = f"MoE-Lens {row['gpu']}"
        kv_gb = tokens * given["kv_tokens"] * kv_bytes_per_token(model, "fp16") / GB
        found += [
            Claim(f"{name} saturating tokens", given["source"], "tokens", row["tokens"], tokens, 0.03),
            Claim(f"{name} cache at 256 tokens", given["source"], "GB", row["kv_gb_256"], kv_gb, 0.03),
        ]
    return found


def _flow(data: Data) -> list[Claim]:
    given = data["expertflow_memory"]
    model = load("switch_base_128")
    layers = len(model.moe_layers)
    moe = model.layers[model.moe_layers[0]].moe
    assert moe is not None
    slot = layers * moe.expert_parameters(model.hidden_size) * 2 / GIB
    first = given["first"]
    note = f"from the reading at {first['offloaded']} off the device; {slot:.4f} GiB a slot of all layers"
    return [
        Claim(
            f"ExpertFlow memory, {row['offloaded']} of 128 off the device",
            given["source"],
            "GiB",
            row["gib"],
            first["gib"] + (first["offloaded"] - row["offloaded"]) * slot,
            0.03,
            note=note,
        )
        for row in given["rows"]
    ]


def _m3vit(data: Data) -> list[Claim]:
    given = data["m3vit"]
    s, source = given["set_up"], given["source"]
    device = load_device("zcu104")
    anchor = given["pascal"]
    # both shares of the device's peaks come from the PASCAL row; NYUD and all ratios use them unchanged
    compute = _vit_flops(s, anchor) / (anchor["dense_ms"] * MS)
    expert = 2 * s["hidden"] * s["expert_width"] + s["hidden"] + s["expert_width"]
    loads = _patches(s, anchor) * s["top_k"] * s["moe_layers"]
    bandwidth = loads * expert / ((anchor["token_major_ms"] - anchor["dense_ms"]) * MS)
    shares = (
        f"PASCAL sets {compute / device.peak_flops_per_s['fp16']:.2f} of the peak and "
        f"{bandwidth / device.main_memory.bandwidth_bytes_per_s:.2f} of the bandwidth (8-bit experts)"
    )
    found = []
    for name in ("pascal", "nyud"):
        row = given[name]
        token_major, reordered = reordered_s(
            tokens=_patches(s, row),
            top_k=s["top_k"],
            layers=s["moe_layers"],
            expert_bytes=expert,
            compute_s=_vit_flops(s, row) / compute,
            bytes_per_s=bandwidth,
        )
        energy = reordered * device.busy_w
        rows = (
            ("token-major", "ms", row["token_major_ms"], token_major / MS),
            ("expert-major", "ms", row["reordered_ms"], reordered / MS),
            ("ratio of the orders", "ratio", given["ratios"][name], token_major / reordered),
            ("energy, expert-major", "J", row["reordered_ms"] * MS * s["watts"], energy),
            (
                "energy of the GPU over it",
                "ratio",
                row["gpu_ratio"],
                row["gpu_j"] / (reordered * device.busy_w),
            ),
        )
        found += [
            Claim(f"M3ViT {name.upper()} {what}", source, unit, published, ours, 0.05, note=shares)
            for what, unit, published, ours in rows
        ]
    return found


def _patches(s: Data, row: Data) -> int:
    return int(row["height"] // s["patch"] * (row["width"] // s["patch"]))


def _vit_flops(s: Data, row: Data) -> float:
    """Forward pass of a vision transformer of that size. [FLOP]"""
    tokens, hidden = _patches(s, row), s["hidden"]
    linear = 2 * tokens * (4 * hidden**2 + 2 * hidden * s["ffn"])
    attention = 4 * tokens**2 * hidden
    return float(s["layers"] * (linear + attention) + 2 * tokens * 3 * s["patch"] ** 2 * hidden)


def _mixed(data: Data, seed: int) -> list[Claim]:
    given, model = data["mc_moe"], load("mixtral_8x7b")
    found = [
        Claim(
            f"MC-MoE stored size at {row['bits']} bits",
            given["source"],
            "GB",
            row["gb"],
            variants.mixed_model_bytes(
                model, expert_bits=row["experts"], other_bits=given["other_bits"], group=given["group"]
            )
            / GB,
            0.02,
        )
        for row in given["rows"]
    ]
    found += _activated(given, model, seed)
    note = "46.7e9 parameters of two bytes are 93.4 GB; the printed size holds more than the weights"
    fp16 = 2 * total_parameters(model) / GB
    found.append(
        Claim("MC-MoE stored size at fp16", given["source"], "GB", given["fp16_gb"], fp16, 0.02, note=note)
    )
    qmoe = data["qmoe"]
    for row in qmoe["rows"]:
        packed = row["bf16_gb"] * qmoe["bits"] / 16
        name = f"QMoE {row['model']} at {qmoe['bits']} bits"
        found.append(Claim(name, qmoe["source"], "GB", row["gb"], packed, 0.02))
    return found


def _activated(given: Data, model: ModelSpec, seed: int) -> list[Claim]:
    """Weights of a token where the busiest experts have most bits, by the integer programme.

    How much busier they are follows from the published skew of that very model.
    """
    trace = traffic(given["like"], model.num_layers, model.num_experts, model.top_k, TOKENS, seed)
    counts = trace.counts()
    found = []
    for row in given["activated"]:
        chosen = allocate_bits(counts, row["experts"]).activated_bits(counts)
        size = variants.activated_size_bytes(
            model, expert_bits=chosen, other_bits=given["other_bits"], group=given["group"]
        )
        note = f"{chosen:.2f} bits where tokens go; no embedding and head"
        name = f"MC-MoE activated size at {row['bits']} bits"
        found.append(Claim(name, given["source"], "GB", row["gb"], size / GB, 0.02, note=note))
    return found


def _slim(data: Data) -> list[Claim]:
    given = data["slim_moe"]
    found = []
    for row in given["rows"]:
        model = _narrowed(load("phi_3_5_moe"), row["width"], row["heads"])
        for what, count in (("total", total_parameters(model)), ("active", active_parameters(model))):
            published = row[f"{what}_b"]
            name = f"SlimMoE {row['name']} {what} parameters"
            # printed to one decimal: half of the last digit may be rounding
            tolerance = max(0.02, 0.05 / published)
            found.append(Claim(name, given["source"], "billion", published, count / GIGA, tolerance))
    return found


def _narrowed(model: ModelSpec, width: int, heads: int) -> ModelSpec:
    """Narrower experts, fewer heads."""

    def layer_of(layer: Any) -> Any:
        attention = layer.attention
        assert isinstance(attention, GroupedQueryAttention)
        ratio = heads / attention.num_heads
        slim = replace(attention, num_heads=heads, num_kv_heads=max(1, round(attention.num_kv_heads * ratio)))
        return replace(layer, attention=slim, ffn=replace(layer.moe, expert_width=width))

    return model.with_layers([layer_of(layer) for layer in model.layers])


def _duplex(data: Data) -> list[Claim]:
    given = data["duplex_balance"]
    found = [
        Claim(
            f"Duplex balance point of {row['device']}",
            given["source"],
            "FLOP/byte",
            row["flops_per_byte"],
            balance_flops_per_byte(load_device(row["device"]), "fp16"),
            0.01,
        )
        for row in given["rows"]
    ]
    area = given["area_mm2"]
    stacks = load_device("duplex_xpu").main_memory.capacity_bytes / (16 * GIB)
    logic = load_device("duplex_logic_pim").area_mm2 or 0.0
    ours = logic / stacks
    found.append(
        Claim("Duplex area of a logic die's units", given["source"], "mm2", sum(area["parts"]), ours, 0.01)
    )
    return found


def _adamoe(data: Data) -> list[Claim]:
    given, model = data["adamoe"], load("mixtral_8x7b")
    moe = model.layers[0].moe
    assert moe is not None
    expert_flops = float(expert_op(moe, model.hidden_size, 1, Dtypes()).flops([float(moe.top_k)]))
    share = model.num_layers * expert_flops / forward_flops_per_token(model, given["context_tokens"])
    return [
        Claim(
            f"AdaMoE FLOPs saved, {row['task']}",
            given["source"],
            "points",
            row["saved_percent"],
            100 * variants.saved_fraction(mean_experts=row["experts"], top_k=moe.top_k, expert_share=share),
            1.0,
            absolute=True,
        )
        for row in given["rows"]
    ]


def _plus_plus(data: Data) -> list[Claim]:
    given = data["moe_plus_plus"]
    found = []
    for row in given["rows"]:
        for tau, published in row["taus"].items():
            share = variants.true_expert_fraction(float(tau), row["ffn"], row["zero"])
            ours = variants.expert_forward_s(
                launch_s=given["launch_ms"] * MS,
                num_experts=row["ffn"],
                full_s=row["vanilla"] * MS,
                true_fraction=share,
            )
            name = f"MoE++ {row['model']} expert time at tau {tau}"
            note = f"one launch constant for all sizes, {given['launch_ms']} ms an expert"
            found.append(
                Claim(name, given["source"], "ms", published, ours / MS, row["tolerance"], note=note)
            )
    return found
