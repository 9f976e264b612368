"""FlashMoE, LSH-MoE, Hecate and DeepSpeed-MoE beside ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moesim.evidence import rng_for
from moesim.files import Tree
from moesim.hardware.load import load_cluster
from moesim.placement.splits.hecate import materialise
from moesim.training.overlaps import span_s, triple_overlaps
from moesim.training.papers import hecate, lsh
from moesim.units import MS
from moesim.validate.claims import Claim
from moesim.validate.training_sets.layer import EvenLayer, Machine

CELL_TOLERANCE = 0.25
LSH_TOLERANCE = 0.15
TRAINING_FLOPS = 6
"""Of a parameter and token. [FLOP]"""
STEPS = 200
MEMORY = 0.995

Data = Mapping[str, Any]

_CAPACITY = "in FP32; capacity for one row a token, so half of the two choices is dropped"
_HOST_MEMORY = (
    "products and links alone; theirs grows with tokens, not with experts (36.4 ms with 8, 37.3 with 128):"
    " no launches, but exchanges at 7 GB/s a device, as if NVLink were not used"
)


def flashmoe_claims(data: Data) -> list[Claim]:
    """A layer in one kernel, weak scaling, and what the baselines would take without their host."""
    given = data["flashmoe"]
    persistent, plain = triple_overlaps.build("persistent"), triple_overlaps.build("none")
    found = []
    for row in given["rows"]:
        ours = float(span_s(persistent, _flash_layer(given, row).triple()).max()) / MS
        name = f"FlashMoE, {row['experts']} experts, {row['tokens']} tokens on {row['devices']} GPUs"
        found.append(
            Claim(name, given["source"], "ms", float(row["ms"]), ours, CELL_TOLERANCE, note=_CAPACITY)
        )
    found += [
        Claim(
            f"FlashMoE, efficiency of weak scaling on {devices} GPUs",
            given["source"],
            "%",
            float(percent),
            100 * _weak(given, 2, persistent) / _weak(given, int(devices), persistent),
            CELL_TOLERANCE,
        )
        for devices, percent in given["overlap_efficiency"].items()
    ]
    row = {"devices": 8, "experts": 32, "tokens": 16384}
    alone = float(span_s(plain, _layer(given, row, given["top_k"], "fp16").triple()).max()) / MS
    return found + [
        Claim(
            f"FlashMoE, {name} on 8 GPUs",
            given["source"],
            "ms",
            float(ms),
            alone,
            CELL_TOLERANCE,
            note=_HOST_MEMORY,
        )
        for name, ms in given["baselines"].items()
    ]


def _flash_layer(given: Data, row: Data) -> EvenLayer:
    """FlashMoE's: as many rows as its experts have places for."""
    return _layer(given, row, given["rows_per_token"], "fp32")


def _layer(given: Data, row: Data, rows_per_token: int, dtype: str) -> EvenLayer:
    machine = Machine.of(load_cluster(given["node"]), row["devices"])
    shape = (row["tokens"], row["experts"], rows_per_token, given["hidden"], given["width"])
    return EvenLayer(machine, *shape, gated=False, dtype=dtype)


def _weak(given: Data, devices: int, policy: Any) -> float:
    row = {"devices": devices, "experts": 32, "tokens": 8192}
    return float(span_s(policy, _flash_layer(given, row).triple()).max())


def lsh_claims(data: Data) -> list[Claim]:
    """Amdahl with the printed shares."""
    given = data["lsh"]
    note = (
        "exchanges alone: experts compute fewer rows too, but hashing and residuals cost what is not printed"
    )
    return [
        Claim(
            f"LSH-MoE, {row['name']}",
            given["source"],
            "x",
            float(row["speedup"]),
            lsh.speedup(row["share"], row["rate"]),
            LSH_TOLERANCE,
            note=note,
        )
        for row in given["rows"]
    ]


def hecate_claims(data: Data, seed: int) -> list[Claim]:
    """A layer under drifting loads: sharded experts materialised where they are needed."""
    given = data["hecate"]
    machine = Machine.of(load_cluster(Tree(dict(given["cluster"]), source="hecate.cluster")), 32)
    layer = _Skewed(machine, given["model"])
    rng = rng_for(seed, "validate/hecate")
    deviation = layer.deviation_for(given["imbalance_slowdown"], rng)
    loads = hecate.drifting_loads(STEPS, layer.experts, deviation, MEMORY, rng)
    gains, exchanged, resharded = layer.replay(
        loads, given["window"], given["reshard_every"], given["memory_slots"]
    )
    note = f"log-normal loads whose busiest device has {given['imbalance_slowdown']} times the mean, drifting"
    source = given["source"]
    rows = [
        ("layer over expert parallelism, least", "x", given["layer_speedup"]["least"], float(gains.min())),
        ("layer over expert parallelism, most", "x", given["layer_speedup"]["most"], float(gains.max())),
        ("exchanges of a layer, times quicker", "x", given["exchange_less"], float(np.median(exchanged))),
        ("heterogeneous sharding, least", "x", given["heterogeneous_gain"]["least"], float(resharded.min())),
        ("heterogeneous sharding, most", "x", given["heterogeneous_gain"]["most"], float(resharded.max())),
    ]
    return [
        Claim(f"Hecate, {name}", source, unit, float(value), ours, 0.5, note=note)
        for name, unit, value, ours in rows
    ]


class _Skewed:
    """One layer of 32 devices under uneven loads."""

    def __init__(self, machine: Machine, model: Data) -> None:
        self.machine, self.experts = machine, model["experts"]
        shape = (model["tokens"], model["experts"], model["top_k"], model["hidden"], model["width"])
        self.even = EvenLayer(machine, *shape, gated=False)
        self.node = np.asarray(machine.fabric.node, np.int64)
        self.devices = machine.num_ranks
        self.home = np.repeat(np.eye(self.devices, dtype=bool), self.experts // self.devices, axis=1)
        self.row_s = float(np.max(self.even.experts_s().seconds)) / self.even.rows
        self.expert_bytes = 2 * model["hidden"] * model["width"] * 2

    def deviation_for(self, imbalance: float, rng: np.random.Generator) -> float:
        """Deviation of the logarithm of loads whose busiest device has ``imbalance`` times the mean."""
        draws = rng.normal(size=(64, self.experts))
        low, high = 0.0, 6.0
        for _ in range(40):
            middle = (low + high) / 2
            shares = np.exp(middle * draws)
            device = (shares / shares.sum(axis=1, keepdims=True)) @ self.home.T
            ratio = float((device.max(axis=1) * self.devices).mean())
            low, high = (middle, high) if ratio < imbalance else (low, middle)
        return low

    def replay(
        self, loads: np.ndarray, window: int, every: int, slots: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Speed-ups over expert parallelism, of exchanges, gains of resharding, over steps."""
        idle_s = float(np.max(self.even.experts_s().seconds))
        # an expert enters a node in parts through all of its ports
        ports = float(self.machine.near[0]) + 1.0
        rate = ports * self.machine.fabric.nic_bytes_per_s
        hidden = hecate.overlap_degree(idle_s, rate, self.expert_bytes)
        owned = self.home
        found = []
        for step in range(window, len(loads)):
            predicted = loads[step - window : step].mean(axis=0)
            if (step - window) % every == 0:
                owned = hecate.reshard(predicted, self.devices)
            rows = np.tile(loads[step] * self.even.rows, (self.devices, 1))
            plain = hecate.route(self.home, rows, self.node)
            ways = [
                hecate.route(materialise(one, predicted, hidden, slots, self.node), rows, self.node)
                for one in (owned, self.home)
            ]
            times = [self.seconds(way) for way in (plain, *ways)]
            crossed = self.exchange_s(plain) / self.exchange_s(ways[0])
            found.append((times[0] / times[1], crossed, times[2] / times[1]))
        speedups, exchanged, resharded = np.array(found).T
        return speedups, exchanged, resharded

    def seconds(self, way: hecate.Routed) -> float:
        """Dispatch, products and combine on the busiest devices."""
        return self.exchange_s(way) + float((way.computed * self.row_s).max())

    def exchange_s(self, way: hecate.Routed) -> float:
        """Dispatch and combine through the busiest ports."""
        fabric, row = self.machine.fabric, self.even.payload_bytes
        between, inside = (
            rows * row / rate
            for rows, rate in (
                (way.crossing, fabric.nic_bytes_per_s),
                (way.local, fabric.scale_up_bytes_per_s),
            )
        )
        return float(2 * np.maximum(between, inside).max())


def deepspeed_claims(data: Data) -> list[Claim]:
    """Samples a second of an expert model over those of a dense one of five times its active parameters."""
    s = data["deepspeed_moe"]
    machine = Machine.of(load_cluster(Tree(dict(s["cluster"]), source="deepspeed_moe.cluster")), s["devices"])
    shape = (s["tokens"], s["experts"], 1, s["hidden"], 4 * s["hidden"])
    layer = EvenLayer(machine, *shape, gated=False, dtype="fp16")
    # dispatch and combine, forward and backward
    exchanged_s = 4 * s["expert_layers"] * float(np.max(layer.exchange_s("dispatch").seconds))
    # what a device reached with the dense model, as printed
    reached = TRAINING_FLOPS * s["dense"] * s["dense_samples_per_s"] * s["sequence_tokens"] / s["devices"]
    dense_s, sparse_s = (TRAINING_FLOPS * n * s["tokens"] / reached for n in (s["dense"], s["active"]))
    share = reached / machine.device.peak_flops_per_s["fp16"]
    note = f"both at the dense model's {share:.0%} of the peak, exchanges not hidden"
    return [
        Claim(
            "DeepSpeed-MoE, 1.3B with 128 experts over 6.7B dense, samples a second",
            s["source"],
            "x",
            s["moe_samples_per_s"] / s["dense_samples_per_s"],
            dense_s / (sparse_s + exchanged_s),
            CELL_TOLERANCE,
            note=note,
        )
    ]
