"""Comet's 24 settings: whole models with the expert layer under each system; and single layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import comb
from typing import Any

import numpy as np

from moesim.hardware.load import load_cluster
from moesim.kernels.cost import EXPERT_LAUNCHES
from moesim.network.exchanges.pairwise import Pairwise
from moesim.training.framework import Framework, load_framework
from moesim.training.overlaps import Triple, TripleOverlap, span_s, triple_overlaps
from moesim.units import MS
from moesim.validate.claims import Claim
from moesim.validate.training_sets.hosted import Hosted
from moesim.validate.training_sets.layer import EvenLayer, Machine

TOLERANCE = 0.20
EXCHANGE = "pairwise"
FIRST_FRACTION = 0.5
"""Part of the experts' work that is the first of two products."""

# Megatron-Core's permutation of 2024, in passes over all rows: index_select reads and writes; the way back
# fills with zeros, copies by index, weighs, and sums over the choices
PERMUTE_PASSES, RETURN_PASSES, UNPERMUTE_PASSES = 2, 3, 6.5
COMET_SMS = 20
"""Multiprocessors with which one-sided copies fill the links of a node (18 to 46 in the paper's figure 8)."""
SPARSE_PASSES = 2
"""Sparse encode and decode, and local scatter and gather, read and write every row. [-]"""

Data = Mapping[str, Any]

_HOST = "host time a described operation as fitted on published training steps; operations counted a system"
_HIDDEN = (
    "exchanges and products alone; counts multiprocessors taken from products as communication that shows"
)
_SIZES = "token counts of the figure are assumed"


def comet_claims(data: Data) -> list[Claim]:
    """Comet's latencies, mean reductions, what is hidden, speed-ups of a layer."""
    given = data["comet"]
    study = _Study(given)
    source = given["source"]
    rows = [(row, study.model_ms(row)) for row in given["rows"]]
    found = [
        Claim(
            f"Comet, {row['model']}, {row['tokens']} tokens, TP{row['tp']}",
            source,
            "ms",
            float(row["values"][-1]),
            row["attention"] + times["Comet"],
            TOLERANCE,
            note=_HOST,
        )
        for row, times in rows
    ]
    for system, percent in given["reduction"].items():
        kept = [
            (row, times) for row, times in rows if row["values"][given["systems"].index(system)] is not None
        ]
        less = [1 - (r["attention"] + t["Comet"]) / (r["attention"] + t[system]) for r, t in kept]
        name = f"Comet, less latency than {system}, mean of {len(kept)} settings"
        found.append(
            Claim(name, source, "%", float(percent), 100 * float(np.mean(less)), TOLERANCE, note=_HOST)
        )
    return [*found, *_hidden(given, study), *_single(given, study)]


def _hidden(given: Data, study: _Study) -> list[Claim]:
    """Communication that a layer's systems hide, figure 11."""
    s = given["breakdown"]
    layer = _Setting(given["models"][s["model"]], s["tokens"], 1, given["devices"])
    return [
        Claim(
            f"Comet, communication that {system} hides",
            given["source"],
            "%",
            float(percent),
            100 * study.hidden(system, layer),
            TOLERANCE,
            note=_HIDDEN,
        )
        for system, percent in s["hidden_percent"].items()
    ]


def _single(given: Data, study: _Study) -> list[Claim]:
    """Speed-up of a layer over the mean baseline of each token count, figure 10."""
    s = given["single_layer"]
    gains = []
    for tokens in s["tokens"]:
        layer = _Setting(given["models"][s["model"]], tokens // given["devices"], 1, given["devices"])
        comet = study.layer_s("Comet", layer)
        others = [study.layer_s(system, layer) for system in given["systems"] if system != "Comet"]
        gains.append(float(np.mean(others)) / comet)
    range_of = {"least": min(gains), "most": max(gains), "mean": float(np.mean(gains))}
    return [
        Claim(
            f"Comet, single layer over its baselines, {end}",
            given["source"],
            "x",
            float(value),
            range_of[end],
            TOLERANCE,
            note=f"{_HOST}; {_SIZES}",
        )
        for end, value in s["speedup"].items()
    ]


@dataclass(frozen=True)
class _Setting:
    """A layer: its model, tokens of a tensor-parallel group, the group's size, and all devices."""

    model: Data
    tokens: int
    tp: int
    devices: int

    @property
    def ep(self) -> int:
        """Expert-parallel ranks. [-]"""
        return self.devices // self.tp

    @property
    def local_experts(self) -> int:
        """Experts of a device, cut over its tensor-parallel group. [-]"""
        return max(int(self.model["experts"]) // self.ep, 1)

    @property
    def crossing_rows(self) -> float:
        """Rows through a device's port: to their expert, then inside its tensor-parallel group."""
        rows = self.tokens * self.model["top_k"]
        return float(rows * ((self.ep - 1) / (self.ep * self.tp) + (self.tp - 1) / self.tp))

    @property
    def crossing_tokens(self) -> float:
        """Tokens through a device's port when each goes once to a device that holds any of its experts."""
        experts, k = self.model["experts"], self.model["top_k"]
        missed = comb(experts - self.local_experts, k) / comb(experts, k)
        return float(self.tokens * self.ep * (1 - missed) * (self.devices - 1) / self.devices)


class _Study:
    """Every system on the paper's machine."""

    def __init__(self, given: Data) -> None:
        self.given = given
        self.machine = Machine.of(load_cluster(given["cluster"]), given["devices"])
        self.framework: Framework = load_framework(given["framework"])

    def model_ms(self, row: Data) -> dict[str, float]:
        """What all expert layers of a row's model take under each system. [ms]"""
        model = self.given["models"][row["model"]]
        setting = _Setting(model, row["tokens"], row["tp"], self.given["devices"])
        attention_s = row["attention"] * MS / model["layers"]
        return {
            system: model["layers"] * self.layer_s(system, setting, attention_s) / MS
            for system in self.given["systems"]
        }

    def layer_s(self, system: str, setting: _Setting, attention_s: float = 0.0) -> float:
        """Time of a layer beside its attention. [s]"""
        return self._hosted(system, setting).layer_s(
            self._policy(system), self._triple(system, setting), attention_s
        )

    def hidden(self, system: str, setting: _Setting) -> float:
        """Part of the exchanges that runs beside products."""
        triple = self._triple(system, setting)
        compute = float(np.max(triple.experts_s(1.0).seconds))
        exchanged = sum(float(np.max(curve(1.0).seconds)) for curve in (triple.dispatch_s, triple.combine_s))
        return 1 - (float(span_s(self._policy(system), triple).max()) - compute) / exchanged

    def _policy(self, system: str) -> TripleOverlap:
        if system == "Comet":
            return triple_overlaps.build("fine_grained", {"first_fraction": FIRST_FRACTION})
        degree = self.given["degrees"].get(system)
        return (
            triple_overlaps.build("chunked", {"degree": degree}) if degree else triple_overlaps.build("none")
        )

    def _hosted(self, system: str, setting: _Setting) -> Hosted:
        """Operations of a system: router and sorting before the counts, the sum of rows at the end."""
        launch_s, small = self.framework.launch_s, self.framework.small_launches
        router = 1 + small(self.framework.router_launches)
        if system == "Comet":
            # tiles are gathered and summed in the kernels
            return Hosted(launch_s, router, 1, 0)
        rows = self._layer(setting)
        own_s = rows.passes_s(1) / setting.tp
        if system in ("Tutel", "FasterMoE"):
            each = setting.local_experts if system == "FasterMoE" else 1
            passes = SPARSE_PASSES * own_s
            return Hosted(launch_s, router + 1, EXPERT_LAUNCHES * each, 1, passes, passes)
        # rows of several experts are sorted again where they arrive, and back
        again = float(setting.local_experts > 1)
        many = small(self.given["te_operations_per_expert"] * setting.local_experts)
        return Hosted(
            launch_s,
            router + 1,
            EXPERT_LAUNCHES + 2 * again + (many if system == "Megatron-TE" else 0.0),
            1,
            PERMUTE_PASSES * own_s + again * PERMUTE_PASSES * rows.passes_s(1),
            UNPERMUTE_PASSES * own_s + again * RETURN_PASSES * rows.passes_s(1),
        )

    def _layer(self, setting: _Setting) -> EvenLayer:
        model = setting.model
        shape = (model["experts"], model["top_k"], model["hidden"], model["width"])
        return EvenLayer(self.machine, setting.tokens, *shape, self.given["gated"])

    def _triple(self, system: str, setting: _Setting) -> Triple:
        """The layer on one device under a system's way of moving tokens."""
        model, devices = setting.model, setting.devices
        crossing = setting.crossing_tokens if system == "Comet" else setting.crossing_rows
        base = self._layer(setting)
        # as many rows as cross a device's port, sent to all others
        sent = replace(base, tokens=crossing * devices / (devices - 1) / model["top_k"], exchange=EXCHANGE)
        # a device holds the experts of its expert-parallel rank, a slice of each
        held = replace(base, num_experts=setting.local_experts * devices, width=model["width"] // setting.tp)
        sms = COMET_SMS if system == "Comet" else Pairwise.num_sms
        return replace(sent.triple(sms), experts_s=held.triple().experts_s)
