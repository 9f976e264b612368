"""Tutel: a layer feature by feature, pipelining over 243 settings, the switch of parallelism."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from moesim.evidence import Estimate
from moesim.files import Tree
from moesim.hardware.load import load_cluster
from moesim.hardware.schema import Cluster
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import Gemm, MemoryBound
from moesim.network.exchanges.pairwise import Pairwise
from moesim.network.fabric import roofline_efficiencies
from moesim.training.overlaps import span_s, triple_overlaps
from moesim.training.papers.tutel import degrees, volumes
from moesim.validate.claims import Claim
from moesim.validate.training_sets.layer import EvenLayer, Machine

FEATURE_TOLERANCE = 0.25
GAIN_TOLERANCE = 0.5
DTYPE = "bf16"
LINEAR, HIERARCHICAL = "pairwise", "two_dimensional"
MASK_BYTES = 10
"""A token's place in every slot of every expert: written in fp32, read, written in half precision. [bytes]"""
ENCODE_PASSES = 2
"""Sparse encode and decode each read and write every row. [-]"""
GEMMS = 2
SMS = Pairwise.num_sms

Data = Mapping[str, Any]


def tutel_claims(data: Data) -> list[Claim]:
    """Features, pipelining, switching."""
    given = data["tutel"]
    cluster = load_cluster(Tree(dict(given["cluster"]), source="tutel.cluster"))
    return [*_features(given, cluster), *_pipelining(given, cluster), *_switching(given, cluster)]


@dataclass(frozen=True)
class _Layer(EvenLayer):
    """Experts as batched products of equal rows, as Tutel and Fairseq call them."""

    def experts_s(self, fraction: float = 1.0, dtype: str = "") -> Estimate:
        """Products of a fraction of the rows, an expert's rows in one product."""
        form, held = dtype or self.dtype, max(self.num_experts // self.num_ranks, 1)
        rows = self.rows * fraction / held
        up = self.cost.op(Gemm("up", rows, self.width, self.hidden, form, form, held))
        down = self.cost.op(Gemm("down", rows, self.hidden, self.width, form, form, held))
        return replace(up, seconds=np.asarray(up.seconds) + np.asarray(down.seconds))


def _layer(machine: Machine, s: Data, exchange: str = LINEAR) -> EvenLayer:
    experts = max(round(s["experts_per_device"] * machine.num_ranks), 1)
    return _Layer(machine, s["tokens"], experts, s["top_k"], s["hidden"], s["width"], False, DTYPE, exchange)


def _features(given: Data, cluster: Cluster) -> list[Claim]:
    known = {
        devices: _Features(Machine.of(cluster, devices), given)
        for devices in {r["devices"] for r in given["features"]}
    }
    found = []
    for row in given["features"]:
        ours = known[row["devices"]]
        speedup = row.get("speedup")
        found.append(
            Claim(
                f"Tutel, {row['name']} on {row['devices']} GPUs" + ("" if speedup else ", more"),
                given["source"],
                "x",
                float(speedup or row["more"]),
                ours.speedup(row["name"]) if speedup else ours.more(row["name"]),
                FEATURE_TOLERANCE,
            )
        )
    return found


class _Features:
    """Times of one layer under Fairseq and with each feature of Tutel added."""

    def __init__(self, machine: Machine, given: Data) -> None:
        s = given["layer"]
        self.l2_bytes_per_s = float(given["l2_bytes_per_s"])
        self.linear = _layer(machine, s)
        tree = _layer(machine, s, HIERARCHICAL)
        small = self._small_products()
        sparse = ENCODE_PASSES * self.linear.passes_s(2)
        exchanges = [2 * float(np.max(one.exchange_s("dispatch").seconds)) for one in (self.linear, tree)]
        best = min((self.linear, tree), key=lambda one: float(np.max(one.exchange_s("dispatch").seconds)))
        flexible = float(np.max(self.linear.experts_s().seconds))
        policy = triple_overlaps.build("chunked", {"choices": tuple(given["degrees"])})
        self.seconds = {
            "fairseq": self._dense_gating() + small + exchanges[0],
            "kernels": sparse + small + exchanges[0],
            "hierarchical exchange": sparse + small + exchanges[1],
            "flexible layout": sparse + min(small, flexible) + min(exchanges),
            "pipelining": sparse + float(span_s(policy, best.triple(SMS)).max()),
        }

    def speedup(self, name: str) -> float:
        """Over Fairseq."""
        return self.seconds["fairseq"] / self.seconds["pipelining" if name == "all" else name]

    def more(self, name: str) -> float:
        """Over the feature before."""
        names = list(self.seconds)
        return self.seconds[names[names.index(name) - 1]] / self.seconds[name]

    def _dense_gating(self) -> float:
        """Encode and decode as products with a mask of every slot."""
        layer, tokens = self.linear, self.linear.tokens
        slots = layer.rows
        products = (
            Gemm("encode", slots, layer.hidden, int(tokens), DTYPE, DTYPE),
            Gemm("decode", tokens, layer.hidden, int(slots), DTYPE, DTYPE),
        )
        mask = MemoryBound("mask", MASK_BYTES * tokens * slots)
        return sum(float(np.asarray(layer.cost.op(one).seconds)) for one in (*products, mask))

    def _small_products(self) -> float:
        """Experts with a product for the rows of each sender, which reads the weights again."""
        layer = self.linear
        count = layer.num_experts * GEMMS
        read = count * layer.hidden * layer.width * bytes_per_element(layer.dtype)
        cached_s = read / self.l2_bytes_per_s
        return max(float(np.max(layer.experts_s().seconds)), cached_s)


def _pipelining(given: Data, cluster: Cluster) -> list[Claim]:
    """Mean gain of the best degree and exchange over degree 1 and linear exchange, by scale."""
    s = given["pipelining"]
    policy = triple_overlaps.build("chunked", {"choices": tuple(given["degrees"])})
    plain = triple_overlaps.build("none")
    machines = {devices: Machine.of(cluster, devices) for devices in s["devices"]}
    gains: dict[int, list[float]] = {devices: [] for devices in machines}
    for each, hidden, width, tokens in product(s["experts_per_device"], s["hidden"], s["width"], s["tokens"]):
        setting = {"experts_per_device": each, "hidden": hidden, "width": width, "tokens": tokens, "top_k": 2}
        # a device's products do not know how many devices there are
        products = None
        for devices, machine in machines.items():
            linear, tree = (
                _layer(machine, setting, name).triple(Pairwise.num_sms) for name in (LINEAR, HIERARCHICAL)
            )
            products = products or linear.experts_s
            quick = min((linear, tree), key=lambda one: float(np.max(one.dispatch_s(1.0).seconds)))
            best = span_s(policy, replace(quick, experts_s=products)).max()
            gains[devices].append(float(span_s(plain, replace(linear, experts_s=products)).max() / best) - 1)
    means = [100 * float(np.mean(found)) for found in gains.values()]
    note = "over " + ", ".join(f"{d} GPUs: {m:.0f} %" for d, m in zip(s["devices"], means, strict=True))
    ends = zip(("least", "most"), s["mean_gain_percent"], (min(means), max(means)), strict=True)
    return [
        Claim(
            f"Tutel, pipelining over {81 * len(means)} settings, {end} mean gain",
            given["source"],
            "%",
            float(value),
            ours,
            GAIN_TOLERANCE,
            note=f"{note}; the paper's scales are not all named",
        )
        for end, value, ours in ends
    ]


def _switching(given: Data, cluster: Cluster) -> list[Claim]:
    """Gain of the better of expert+data and expert+model parallelism over the worse, least and most."""
    s = given["switching"]
    reached = cluster.nic_bandwidth_per_device_bytes_per_s * roofline_efficiencies_of("all_to_all")
    machine, gains = Machine.of(cluster, s["devices"]), []
    for setting, factor in product(s["settings"], s["capacity_factors"]):
        base = _layer(machine, {**setting, "hidden": s["hidden"], "top_k": 2, "experts_per_device": 1})
        layer = replace(base, num_experts=s["devices"])
        size = bytes_per_element(DTYPE)
        each = {
            r: volumes(
                r,
                ranks=s["devices"],
                experts=s["experts"],
                row_bytes=s["hidden"] * size,
                rows=factor * setting["tokens"] * layer.top_k,
                expert_bytes=GEMMS * s["hidden"] * setting["width"] * size,
            ).total_bytes
            / reached
            for r in degrees(s["devices"], s["experts"])
        }
        compute = factor * float(np.max(layer.experts_s().seconds))
        one, most = compute + each[1], compute + each[max(each)]
        gains.append(100 * (max(one, most) / min(one, most) - 1))
    ends = zip(("least", "most"), s["gain_percent"], (min(gains), max(gains)), strict=True)
    return [
        Claim(
            f"Tutel, expert+data against expert+model parallelism, {end} gain",
            given["source"],
            "%",
            float(value),
            ours,
            GAIN_TOLERANCE,
            note="volumes over the NIC's rate; tokens and sharing devices are assumed",
        )
        for end, value, ours in ends
    ]


def roofline_efficiencies_of(family: str) -> float:
    """Part of a link's rate that a kind of transfer reaches."""
    return float(roofline_efficiencies().families[family].bandwidth_fraction)
