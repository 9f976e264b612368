"""Published steps, pairs of steps and MoE Parallel Folding's table, each run as a scenario of its recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from moesim.errors import InfeasibleError, InputError
from moesim.files import Tree
from moesim.model.load import load
from moesim.scenario.resolve import Resolved, resolve_tree
from moesim.scenario.sensitivity import scaled
from moesim.scenario.training import build_training
from moesim.training.formulas import train_flops_per_token
from moesim.training.step import TrainStep
from moesim.units import TERA
from moesim.validate.claims import Claim, Progress
from moesim.validate.training_rows import (
    Cell,
    FoldedModel,
    Folding,
    Step,
    folding,
    pairs,
    parts_of,
    rows,
)

STEP_TOLERANCE = 0.25
MEDIAN_TOLERANCE, P90_TOLERANCE = 0.12, 0.25
PAIR_TOLERANCE = 0.30
MFU_TOLERANCE = 4.0
TAU_LEAST = 0.7
PERCENT = 100.0
ROOM_RATIO = 8.0
NATURAL = {"generator": "fitted_skew", "num_batches": 4}
FORCED = {"generator": "balanced"}
RECORDED: Mapping[str, str] = {
    "qwen3_235b_a22b": "qwen3_30b_a3b",
    "qwen3_30b_a3b": "qwen3_30b_a3b",
    "mixtral_8x7b": "mixtral_8x7b",
    "mixtral_8x22b": "mixtral_8x7b",
}
"""Fitted routing whose recording stands for a trained model's: its own, or a sibling's of equal experts."""
STEERED = frozenset({"deepseek_v3"})
"""Biases of the gate keep their loads even over batches in training (arXiv:2412.19437, section 2.1.2)."""
EXCHANGES: Mapping[str, Mapping[str, Any]] = {
    "alltoall": {"exchange": "pairwise", "deduplicate": "expert"},
    "deepep": {"deduplicate": "node"},
    "hybridep": {"deduplicate": "node"},
    "none": {},
}
"""Published name of an exchange to a scenario's ``network``: which kernel sends once a node is left open."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a scenario of a recipe gives; NaN and the reason where it cannot run."""

    step_s: float
    tokens_per_s_per_device: float
    tflops_per_device: float
    note: str = ""


def step_claims(progress: Progress) -> list[Claim]:
    """Tokens a second and device (TFLOP/s where only that is printed) of every published run."""
    found = []
    for row in rows():
        progress(row.id)
        metric = next(m for m in ("tokens_per_s_per_device", "tflops_per_device") if m in row.measured)
        ours = predicted(row.step)
        notes = (row.note, "; ".join(f"assumed: {a}" for a in row.step.assumed), ours.note)
        found.append(
            Claim(
                row.id,
                row.source,
                metric.replace("_per_device", "/device"),
                row.measured[metric],
                getattr(ours, metric),
                STEP_TOLERANCE,
                note="; ".join(n for n in notes if n),
                group=f"step {row.step.model}",
            )
        )
    errors = np.array([abs(claim.error) for claim in found])
    errors = np.where(np.isnan(errors), np.inf, errors)
    overall = (("median", 50, MEDIAN_TOLERANCE), ("90th percentile", 90, P90_TOLERANCE))
    return found + [
        Claim(
            f"Published steps, {name} of the error",
            "asked of this model",
            "%",
            0.0,
            PERCENT * float(np.percentile(errors, q, method="higher")),
            PERCENT * bound,
            absolute=True,
        )
        for name, q, bound in overall
    ]


def pair_claims(progress: Progress) -> list[Claim]:
    """Change between two runs that differ in one switch; memory has a set of its own."""
    found = []
    for pair, before, after in pairs():
        if pair.metric == "memory_bytes":
            continue
        progress(pair.switch)
        ours = [getattr(predicted(row.step), pair.metric) for row in (before, after)]
        found.append(
            Claim(
                f"{pair.switch}: {before.id} to {after.id}",
                before.source,
                "%",
                PERCENT * (after.measured[pair.metric] / before.measured[pair.metric] - 1),
                PERCENT * (ours[1] / ours[0] - 1),
                PAIR_TOLERANCE,
                note=pair.note,
                group="pairs",
            )
        )
    return found


def folding_claims(progress: Progress) -> list[Claim]:
    """Cells of the table in percentage points, and whether each model's layouts come in the printed order."""
    table = folding()
    found = []
    for model in table.models:
        progress(f"Parallel Folding: {model.name}")
        mfu = [_mfu(table, model, cell) for cell in model.cells]
        for cell, (ours, note) in zip(model.cells, mfu, strict=True):
            found.append(
                Claim(
                    f"Parallel Folding, {model.name}, {cell.method}",
                    table.source,
                    "% MFU",
                    cell.mfu or 0.0,
                    ours,
                    MFU_TOLERANCE,
                    absolute=True,
                    note="out of memory" if cell.mfu is None else note,
                    group="folding",
                )
            )
        tau = kendall_tau([cell.mfu or 0.0 for cell in model.cells], [np.nan_to_num(ours) for ours, _ in mfu])
        found.append(
            Claim(
                f"Parallel Folding, {model.name}, order of layouts (Kendall tau)",
                table.source,
                "",
                1.0,
                tau,
                1.0 - TAU_LEAST,
                absolute=True,
                group="folding",
            )
        )
    return found


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Concordant less discordant pairs over all pairs that the first one orders.

    Examples
    --------
    >>> kendall_tau([1, 2, 3], [10, 30, 20])
    0.3333333333333333
    """
    signs = [
        float(np.sign(one[i] - one[j]) * np.sign(other[i] - other[j]))
        for i, j in combinations(range(len(one)), 2)
        if one[i] != one[j]
    ]
    return sum(signs) / len(signs)


def predicted(step: Step) -> Predicted:
    """The step of a recipe; equal ones are run once."""
    return _once(scenario_of(step))


def _once(scenario: Mapping[str, Any]) -> Predicted:
    return _run(json.dumps(dict(scenario) | {"name": "published"}, sort_keys=True))


@cache
def _run(text: str) -> Predicted:
    scenario = json.loads(text)
    section, devices = scenario["training"], scenario["plan"]["num_devices"]
    note = ""
    try:
        resolved = resolve_tree(Tree(scenario, source="published step"))
        try:
            built = build_training(resolved)
        except InfeasibleError as error:
            # it ran: memory is judged in a set of its own, here its time is asked for
            note = " ".join(str(error).split(";")[:2])
            built = build_training(_with_room(resolved))
    except InputError as error:
        nan = float("nan")
        return Predicted(nan, nan, nan, " ".join(str(error).split()))
    step_s = float(TrainStep(built.setup).run().makespan_s[0])
    rate = section["global_batch_size"] * section["sequence_length"] / step_s / devices
    flops = train_flops_per_token(built.setup.model, section["sequence_length"], mtp=section["mtp"])
    return Predicted(step_s, rate, rate * flops / TERA, note)


def _with_room(resolved: Resolved) -> Resolved:
    """The same on devices of more memory."""
    cluster = resolved.scenario.cluster
    tier = next(iter(cluster.node.device.memory))
    wide = scaled(cluster, ["node", "device", "memory", tier, "capacity_bytes"], ROOM_RATIO)
    return replace(resolved, scenario=resolved.scenario.model_copy(update={"cluster": wide}))


def scenario_of(step: Step) -> dict[str, Any]:
    """Scenario of a recipe."""
    dense = load(step.model).num_experts == 0
    plan = {name: value for name, value in step.plan.model_dump().items() if value is not None}
    if step.layout is not None:
        plan["layers"] = [part.layers for part in parts_of(step.layout)]
    policy, kept = step.policy, step.kept
    narrow = step.precision
    scenario: dict[str, Any] = {
        "schema_version": 1,
        "name": step.name,
        "question": "train_step",
        "model": step.model,
        "dtypes": {"weights": narrow, "experts": narrow, "activations": "bf16"},
        "cluster": step.cluster,
        "plan": plan | {"num_devices": step.num_devices},
        "network": dict(EXCHANGES[step.exchange]),
        "training": {
            "sequence_length": step.sequence_tokens,
            "micro_batch_size": step.micro_batch,
            "global_batch_size": step.global_batch,
            "schedule": {"policy": schedule_of(step)},
            "recompute": ["full"] if policy.granularity == "full" else list(policy.modules),
            "sharding": kept.sharding,
            "gradient_dtype": kept.gradients,
            "moment_dtype": kept.moments,
            "overlap_gradient_reduce": step.overlap.grad_reduce,
            "overlap_parameter_gather": step.overlap.param_gather,
            "delayed_weight_gradient": step.overlap.delayed_wgrad,
            "capacity_factor": step.capacity_factor,
            "mtp": step.mtp_layers > 0,
            "graphs": step.cuda_graph,
            "fused_sinks": step.fused_sinks,
            # a graph of the whole step cannot ask the host
            "host_reads_counts": step.cuda_graph != "full" and step.capacity_factor is None,
        },
        "seed": 0,
    }
    if step.exchange_sms is not None:
        scenario["network"]["sms"] = step.exchange_sms
    if step.text_tokens is not None:
        scenario["training"]["text_tokens"] = step.text_tokens
    if step.routing == "natural" and step.model in STEERED:
        scenario["training"]["steered"] = True
    if not dense:
        scenario["routing"] = routing_of(step)
    return scenario


def routing_of(step: Step) -> dict[str, Any]:
    """Section ``routing`` of a step: recorded loads of the model's family, else a stand-in.

    Nobody recorded routers in their first hundred steps.
    """
    if step.routing == "forced":
        return FORCED
    like = RECORDED.get(step.model) if step.routing == "natural" else None
    return NATURAL if like is None else NATURAL | {"generator": "matched", "like": like}


def schedule_of(step: Step) -> str:
    """Registered schedule: pairs where exchanges of one microbatch run beside another's work."""
    if step.schedule == "dualpipe":
        return "dualpipe"
    if step.overlap.ep and (step.plan.vpp > 1 or step.plan.pp == 1):
        return "interleaved_pairs"
    return "interleaved" if step.plan.vpp > 1 else "1f1b"


def _mfu(table: Folding, model: FoldedModel, cell: Cell) -> tuple[float, str]:
    """MFU in percent of a cell; 0 where the layout does not fit."""
    step = Step(
        name=f"{model.name} {cell.method}",
        model=model.model,
        cluster=table.clusters[model.num_devices],
        num_devices=model.num_devices,
        precision="bf16",
        plan=cell.plan,
        global_batch=table.global_batch,
        sequence_tokens=table.sequence_tokens,
        micro_batch=table.micro_batch,
        exchange="alltoall",
        overlap={"grad_reduce": True, "param_gather": True},
        capacity_factor=table.capacity_factor,
        states={"sharding": cell.sharding},
        source=table.source,
    )
    scenario = scenario_of(step)
    scenario["model"] = _config(model)
    scenario["routing"] = FORCED
    ours = _once(scenario)
    if ours.note:  # out of memory, or no layout at all
        return 0.0, ours.note
    return PERCENT * ours.tflops_per_device * TERA / table.peak_flops_per_s, ""


def _config(model: FoldedModel) -> Any:
    """Bundled model, cut into finer experts or with experts in place of its feed-forward parts."""
    if model.fine_grained > 1:
        spec = load(model.model)
        moe = next(layer.moe for layer in spec.layers if layer.moe is not None)
        return {
            "name": model.model,
            "num_local_experts": moe.num_experts * model.fine_grained,
            "num_experts_per_tok": model.top_k,
            "intermediate_size": moe.expert_width // model.fine_grained,
        }
    if model.upcycled:
        return {
            "name": "mixtral_8x22b",
            "hidden_size": 8192,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "intermediate_size": 28672,
            "vocab_size": 128256,
            "num_local_experts": model.upcycled["experts"],
            "num_experts_per_tok": model.upcycled["top_k"],
        }
    return model.model
