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
from moesim.training.overlaps import Triple, TripleOverlap, span_s, triple_overlaps
from moesim.training.overlaps.base import stretched
from moesim.training.papers.tutel import degrees, volumes
from moesim.units import MS
from moesim.validate.claims import Claim
from moesim.validate.training_sets.layer import EvenLayer, Machine

FEATURE_TOLERANCE = 0.25
GAIN_TOLERANCE = 0.5
DTYPE = "fp32"
HALF, TF32_WORDS = "bf16", 2
"""A TF32 product has half the rate of a half-precision one and twice its bytes: twice its inner length."""
LINEAR, HIERARCHICAL = "pairwise", "two_dimensional"
MASK_BYTES = 12
"""A token's place in every slot of every expert: written, read, written as a mask. [bytes]"""
BOTH_PASSES = 2
"""Bytes of a forward and a backward pass over those of the forward one. [-]"""
EXPERT_GRADIENTS, ENCODE_GRADIENTS, DECODE_GRADIENTS = 2, 1, 2
"""Products of a backward pass for each of the forward one; the dispatch mask has no gradient. [-]"""
ENCODE_PASSES = 2
"""Sparse encode and decode each read and write every row. [-]"""
GEMMS = 2
SMS = Pairwise.num_sms

Data = Mapping[str, Any]

_SCALE = "by the printed ratios the second curve grows 63-fold from 16 to 2,048 devices, ours eightfold"


def tutel_claims(data: Data) -> list[Claim]:
    """Features, pipelining, switching."""
    given = data["tutel"]
    cluster = load_cluster(Tree(dict(given["cluster"]), source="tutel.cluster"))
    return [
        *_features(given, cluster),
        *_overhead(given, cluster),
        *_pipelining(given, cluster),
        *_switching(given, cluster),
    ]


@dataclass(frozen=True)
class _Layer(EvenLayer):
    """Experts as batched products of equal rows, as Tutel and Fairseq call them."""

    def experts_s(self, fraction: float = 1.0, dtype: str = "") -> Estimate:
        """Products of a fraction of the rows, an expert's rows in one product."""
        held = max(self.num_experts // self.num_ranks, 1)
        rows = self.rows * fraction / held
        up = self.cost.op(_tf32("up", rows, self.width, self.hidden, held))
        down = self.cost.op(_tf32("down", rows, self.hidden, self.width, held))
        return replace(up, seconds=np.asarray(up.seconds) + np.asarray(down.seconds))


def _tf32(name: str, rows: float, columns: int, inner: int, count: int = 1) -> Gemm:
    return Gemm(name, rows, columns, TF32_WORDS * inner, HALF, HALF, count)


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
                note=_SCALE if row["devices"] == max(known) else "",
            )
        )
    return found


class _Features:
    """Times of one step of a layer under Fairseq and with each feature of Tutel added."""

    def __init__(self, machine: Machine, given: Data) -> None:
        s = given["layer"]
        self.l2_bytes_per_s = float(given["l2_bytes_per_s"])
        self.linear = _layer(machine, s)
        tree = _layer(machine, s, HIERARCHICAL)
        flexible = (1 + EXPERT_GRADIENTS) * float(np.max(self.linear.experts_s().seconds))
        small = max(flexible, (1 + EXPERT_GRADIENTS) * self._cached_s())
        sparse = _sparse_s(self.linear)
        exchanges = [2 * BOTH_PASSES * _exchange_s(one) for one in (self.linear, tree)]
        best = min((self.linear, tree), key=_exchange_s)
        policy = triple_overlaps.build("chunked", {"choices": tuple(given["degrees"])})
        self.seconds = {
            "fairseq": self._dense_gating() + small + exchanges[0],
            "kernels": sparse + small + exchanges[0],
            "hierarchical exchange": sparse + small + exchanges[1],
            "flexible layout": sparse + flexible + min(exchanges),
            "pipelining": sparse + _step_s(policy, best.triple(SMS)),
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
        mask = MemoryBound("mask", BOTH_PASSES * MASK_BYTES * tokens * slots)
        encode = _tf32("encode", slots, layer.hidden, int(tokens))
        decode = _tf32("decode", tokens, layer.hidden, int(slots))
        times = ((1 + ENCODE_GRADIENTS, encode), (1 + DECODE_GRADIENTS, decode), (1, mask))
        return sum(count * float(np.asarray(layer.cost.op(one).seconds)) for count, one in times)

    def _cached_s(self) -> float:
        """Experts with a product for the rows of each sender, which reads the weights again. [s]"""
        layer = self.linear
        count = layer.num_experts * GEMMS
        read = count * layer.hidden * layer.width * bytes_per_element(layer.dtype)
        return float(read / self.l2_bytes_per_s)


def _exchange_s(layer: EvenLayer) -> float:
    return float(np.max(layer.exchange_s("dispatch").seconds))


def _sparse_s(layer: EvenLayer) -> float:
    """Sparse encode and decode of a step. [s]"""
    return BOTH_PASSES * ENCODE_PASSES * layer.passes_s(2)


def _step_s(policy: TripleOverlap, triple: Triple) -> float:
    """Forward and backward pass of dispatch, experts and combine. [s]"""
    back = replace(triple, experts_s=lambda part: stretched(triple.experts_s(part), EXPERT_GRADIENTS))
    return float(span_s(policy, triple).max() + span_s(policy, back).max())


def _overhead(given: Data, cluster: Cluster) -> list[Claim]:
    """Exchanges of a step of a large layer, milliseconds."""
    s = given["overhead"]
    found = []
    for devices, published_ms in s["exchange_ms"].items():
        layer = _layer(Machine.of(cluster, int(devices)), s)
        name = f"Tutel, exchanges of a step of 64K tokens on {devices} GPUs"
        ours = 2 * BOTH_PASSES * _exchange_s(layer) / MS
        found.append(Claim(name, given["source"], "ms", float(published_ms), ours, FEATURE_TOLERANCE))
    return found


def _pipelining(given: Data, cluster: Cluster) -> list[Claim]:
    """Mean gain of the best degree and exchange over one chunk with either exchange, by scale."""
    s = given["pipelining"]
    policy = triple_overlaps.build("chunked", {"choices": tuple(given["degrees"])})
    plain = triple_overlaps.build("none")
    printed = {int(devices): percents for devices, percents in s["gain_percent"].items()}
    machines = {devices: Machine.of(cluster, devices) for devices in printed}
    gains: dict[int, list[tuple[float, float]]] = {devices: [] for devices in machines}
    for each, hidden, width, tokens in product(s["experts_per_device"], s["hidden"], s["width"], s["tokens"]):
        setting = {"experts_per_device": each, "hidden": hidden, "width": width, "tokens": tokens, "top_k": 2}
        # a device's products do not know how many devices there are
        products = None
        for devices, machine in machines.items():
            both = [_layer(machine, setting, name) for name in (LINEAR, HIERARCHICAL)]
            products = products or both[0].triple().experts_s
            sparse = _sparse_s(both[0])
            triples = [replace(one.triple(SMS), experts_s=products) for one in both]
            quick = triples[int(np.argmin([_exchange_s(one) for one in both]))]
            best = sparse + _step_s(policy, quick)
            linear, tree = (100 * ((sparse + _step_s(plain, one)) / best - 1) for one in triples)
            gains[devices].append((linear, tree))
    return [
        Claim(
            f"Tutel, pipelining on {devices} GPUs, mean gain over one chunk, {kind}",
            given["source"],
            "%",
            float(published_percent),
            ours,
            GAIN_TOLERANCE,
            note="the hierarchical exchange is quick at few devices and the linear one slow at many in ours",
        )
        for devices, found in gains.items()
        for kind, published_percent, ours in zip(
            ("linear", "hierarchical"),
            printed[devices],
            np.mean(found, axis=0).tolist(),
            strict=True,
        )
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
