"""Comet's 24 settings: whole models with the expert layer under each system."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from moesim.hardware.load import load_cluster
from moesim.training.overlaps import Triple, span_s, triple_overlaps
from moesim.units import MS
from moesim.validate.claims import Claim
from moesim.validate.training_sets.layer import EvenLayer, Machine

TOLERANCE = 0.20
EXCHANGE = "pairwise"

Data = Mapping[str, Any]

_KERNELS = (
    "products at the rate of measured fused expert kernels; the printed times of long products mean 40 % more"
)
_HOST = "the frameworks' launches hold the device up where products are short (TP8: more tokens, same time)"


def comet_claims(data: Data) -> list[Claim]:
    """Comet's latencies, mean reductions, what is hidden, speed-ups of a layer."""
    given = data["comet"]
    machine = Machine.of(load_cluster(given["cluster"]), given["devices"])
    rows = [(row, _times(machine, given, row)) for row in given["rows"]]
    source = given["source"]
    found = [
        Claim(
            f"Comet, {row['model']}, {row['tokens']} tokens, TP{row['tp']}",
            source,
            "ms",
            float(row["values"][-1]),
            row["attention"] + times["Comet"],
            TOLERANCE,
            note=_KERNELS,
        )
        for row, times in rows
    ]
    for system, percent in given["reduction"].items():
        kept = [
            (row, times) for row, times in rows if row["values"][given["systems"].index(system)] is not None
        ]
        less = [1 - (r["attention"] + t["Comet"]) / (r["attention"] + t[system]) for r, t in kept]
        found.append(
            Claim(
                f"Comet, less latency than {system}, mean of {len(kept)} settings",
                source,
                "%",
                float(percent),
                100 * float(np.mean(less)),
                TOLERANCE,
                note=_HOST,
            )
        )
    for system, percent in given["hidden_percent"].items():
        sorting = "none" if system == "Comet" else "sorting"
        ours = [1 - (t[system] - t["compute"] - t[sorting]) / t["exchange"] for _, t in rows]
        found.append(
            Claim(
                f"Comet, communication that {system} hides, mean",
                source,
                "%",
                float(percent),
                100 * float(np.mean(ours)),
                TOLERANCE,
                note="counts multiprocessors taken from products as communication that shows",
            )
        )
    gains = [t["Megatron-Cutlass"] / t["Comet"] for _, t in rows]
    range_of = {"least": min(gains), "most": max(gains), "mean": float(np.mean(gains))}
    return found + [
        Claim(
            f"Comet, single layer over Megatron-Cutlass, {end}",
            source,
            "x",
            float(value),
            range_of[end],
            TOLERANCE,
            note=_HOST,
        )
        for end, value in given["speedup"].items()
    ]


def _times(machine: Machine, given: Data, row: Data) -> dict[str, float]:
    """What all expert layers of a model take under each system. [ms]"""
    model = given["models"][row["model"]]
    triple, permutes_s = _triple(machine, model, row, given["devices"])
    policies = {
        "Megatron-TE": triple_overlaps.build("none"),
        "Megatron-Cutlass": triple_overlaps.build("none"),
        **{name: triple_overlaps.build("chunked", {"degree": d}) for name, d in given["degrees"].items()},
        "Comet": triple_overlaps.build("fine_grained"),
    }
    each = {name: float(span_s(policy, triple).max()) for name, policy in policies.items()}
    # tiles are gathered and summed as they arrive: only frameworks of separate kernels sort rows
    sorted_s = {name: seconds + (permutes_s if name != "Comet" else 0.0) for name, seconds in each.items()}
    compute = float(np.max(triple.experts_s(1.0).seconds))
    exchange = sum(float(np.max(curve(1.0).seconds)) for curve in (triple.dispatch_s, triple.combine_s))
    parts = {"compute": compute, "exchange": exchange, "sorting": permutes_s, "none": 0.0}
    return {name: model["layers"] * seconds / MS for name, seconds in {**sorted_s, **parts}.items()}


def _triple(machine: Machine, model: Data, row: Data, devices: int) -> tuple[Triple, float]:
    """The layer on one device, and the time to sort its rows.

    Rows travel among expert-parallel ranks, a part of them from each tensor-parallel rank, and are then
    gathered in the tensor-parallel group.
    """
    tp, ep = row["tp"], devices // row["tp"]
    rows = row["tokens"] * model["top_k"]
    crossing = rows * ((ep - 1) / (ep * tp) + (tp - 1) / tp)
    base = EvenLayer(
        machine, row["tokens"], model["experts"], model["top_k"], model["hidden"], model["width"], True
    )
    # as many rows as cross a device's port, sent to all others
    sent = replace(base, tokens=crossing * devices / (devices - 1) / model["top_k"], exchange=EXCHANGE)
    # a device holds the experts of its expert-parallel rank, a slice of each
    held = replace(base, num_experts=model["experts"] * devices // ep, width=model["width"] // tp)
    whole = sent.triple()
    return replace(whole, experts_s=held.triple().experts_s), held.permutes_s()
