"""Published times of collectives and exchanges beside ours: FSMoE, Tutel, DeepEP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from moesim.files import Tree
from moesim.hardware import load_cluster
from moesim.kernels.choose import cost_of
from moesim.kernels.histogram import ExpertLoad
from moesim.model import Dtypes
from moesim.model.layer_ops import expert_op
from moesim.model.spec import MoeSpec
from moesim.network.exchanges.base import Load, Phase, exchanges
from moesim.network.exchanges.probe import Even
from moesim.network.fabric import Communication, Fabric
from moesim.network.forms import hit_probability
from moesim.network.traffic import Deduplication
from moesim.validate.claims import Claim, Progress, published

PHASES: tuple[Phase, ...] = ("dispatch", "combine")

ELEMENT_BYTES: dict[Phase, float] = {"dispatch": 1.0 + 4.0 / 128, "combine": 2.0}
"""Bytes of an element: fp8 with a scale for 128 there, bf16 back."""

FP16 = Dtypes(weights="fp16", experts="fp16", kv="fp16", activations="fp16")

MOST_DOMAINS = 4
"""DeepEP's benchmark sends a token to the experts of at most so many nodes."""


TUTEL_RANKS = tuple(2**power for power in range(4, 12))
"""16 to 2,048 GPUs."""


def claims(seed: int = 0, progress: Progress | None = None) -> list[Claim]:
    """Every published number of ``published/network.yaml``; nothing here is random."""
    del seed
    given = published("network").data
    found: list[Claim] = []
    for name, of in (
        ("fsmoe", _fsmoe),
        ("tutel", _tutel),
        ("deepep_low_latency", _low_latency),
        ("deepep_normal", _normal),
    ):
        if progress is not None:
            progress(name)
        found += of(given[name])
    return found


def _fsmoe(given: dict[str, Any]) -> Iterator[Claim]:
    """Phases of a layer from the paper's own constants.

    Dispatch and combine count the tokens of a rank; gather, scatter and the all-reduce of the attention's
    gradients what a rank holds of a buffer that its node shares.
    """
    for bed in given["testbeds"]:
        for row in bed["rows"]:
            copied = given["copies"] * row["width"]
            reduced = given["all_reduced"][row["model"]] * row["width"] ** 2
            shares = {"all_gather": copied, "reduce_scatter": copied, "all_reduce": reduced}
            sizes = {phase: whole / bed["ranks_per_node"] for phase, whole in shares.items()}
            for phase, elements in {"all_to_all": copied, **sizes}.items():
                line = bed[phase]
                number = 2 if phase == "all_to_all" else 1
                seconds = number * (line["start_s"] + line["per_element_s"] * elements)
                name = f"FSMoE {bed['name']} {row['model']} {phase.replace('_', '-')}"
                notes = [given["shards"]] if phase in sizes else []
                notes += [given[line["note"]]] if "note" in line else []
                published_s = row[f"{phase}_s"]
                yield Claim(
                    name,
                    given["source"],
                    "s",
                    published_s,
                    seconds,
                    given["tolerance"],
                    note="; ".join(notes),
                )


def _tutel(given: dict[str, Any]) -> Iterator[Claim]:
    """What 2DH does to a layer on 2,048 GPUs; where it begins to pay is told beside it."""
    gain = {}
    for ranks in TUTEL_RANKS:
        layer = _tutel_layers(given, ranks)
        gain[ranks] = layer["pairwise"] / layer["two_dimensional"]
    shown = given["layer_speedup_at_2048"]
    wanted = shown["two_dimensional"] / shown["linear"]
    first = next((ranks for ranks, ratio in gain.items() if ratio > 1), 0)
    note = f"ours pays from {first} GPUs on; at 16, where the paper does not use it, {gain[16]:.2f}"
    name = "Tutel 2DH over linear, layer on 2048"
    yield Claim(name, given["source"], "ratio", wanted, gain[2048], given["tolerance"], note=note)


def _tutel_layers(given: dict[str, Any], num_ranks: int) -> dict[str, float]:
    """Seconds of a layer (experts, dispatch, combine) with each exchange."""
    cluster = load_cluster(Tree({"node": "a100_x8", "num_nodes": num_ranks // 8}))
    rows = float(given["tokens"] * given["top_k"])
    moe = MoeSpec(given["experts_per_device"] * num_ranks, given["top_k"], given["width"], gated=False)
    op = expert_op(moe, given["width"], given["experts_per_device"], FP16)
    counts = np.full((1, given["experts_per_device"]), int(rows / given["experts_per_device"]))
    experts_s = float(cost_of(cluster.node.device).experts(op, ExpertLoad.of(counts)).seconds[0])  # type: ignore[index]
    result = {}
    for name in ("pairwise", "two_dimensional"):
        fabric = Fabric.of(cluster, num_ranks, Communication(exchange=name, deduplicate="expert"))
        even = _given(given | {"experts": moe.num_experts}, num_ranks, {"dispatch": 2.0, "combine": 2.0})
        load = even.load("dispatch", "expert", fabric)
        priced = exchanges.build(name).price(load, fabric)
        assert priced is not None  # both apply between nodes
        result[name] = experts_s + 2 * float(np.ravel(priced.seconds)[0])
    return result


def _given(given: dict[str, Any], ranks: int, element_bytes: dict[Phase, float]) -> Even:
    """Evenly routed tokens of a published set-up."""
    row_bytes = {phase: given["width"] * size for phase, size in element_bytes.items()}
    parts = (given["tokens"], given["experts"], given["top_k"], row_bytes, MOST_DOMAINS)
    return Even(np.arange(ranks), *parts)


def _h800(ranks: int, exchange: str, deduplicate: Deduplication, sms: int = 20) -> Fabric:
    cluster = load_cluster(Tree({"node": "h800_x8", "num_nodes": ranks // 8}))
    return Fabric.of(cluster, ranks, Communication(exchange=exchange, deduplicate=deduplicate, sms=sms))


def _low_latency(given: dict[str, Any]) -> Iterator[Claim]:
    """Times of the H800 from the fit of the H100, over the H800's links."""
    for row in given["rows"]:
        ranks = row["ranks"]
        fabric = _h800(ranks, "deepep_low_latency", "expert")
        for phase in PHASES:
            load = _given(given, ranks, ELEMENT_BYTES).load(phase, "expert", fabric)
            name = f"DeepEP low latency {phase} EP{ranks}"
            yield _claim(name, given, row[f"{phase}_s"], load, fabric, "s")


def _normal(given: dict[str, Any]) -> Iterator[Claim]:
    """Logical rates of the H800 from the fit of the H100: bytes to every node that is hit, over the time."""
    for row in given["rows"]:
        ranks, domains = row["ranks"], row["ranks"] // 8
        fabric = _h800(ranks, "deepep_normal", "node", given["sms"])
        allowed = min(domains, MOST_DOMAINS)
        hit, parts = (
            (given["experts"] * allowed / domains, allowed) if domains > 1 else (given["experts"], ranks)
        )
        copies = parts * float(hit_probability(float(parts), float(hit), given["top_k"]))
        for phase in PHASES:
            load = _given(given, ranks, ELEMENT_BYTES).load(phase, "node", fabric)
            logical = given["tokens"] * load.row_bytes * copies
            name = f"DeepEP normal {phase} EP{ranks}"
            yield _claim(name, given, row[f"{phase}_bytes_per_s"], load, fabric, "bytes/s", logical)


def _claim(
    name: str,
    given: dict[str, Any],
    shown: float,
    load: Load,
    fabric: Fabric,
    unit: str,
    logical: float = 0.0,
) -> Claim:
    priced = exchanges.build(fabric.communication.exchange).price(load, fabric)
    assert priced is not None  # the H100 was measured
    seconds = float(np.ravel(priced.seconds)[0])
    ours = logical / seconds if logical else seconds
    return Claim(
        name, given["source"], unit, shown, ours, given["tolerance"], note="fitted on the H100's tables"
    )
