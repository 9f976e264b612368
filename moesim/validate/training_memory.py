"""Peak memory of published training runs beside ours: absolute, and between rows that differ in one switch.

Nothing is fitted. Runs are described by their recipes; what a row does not describe (allocator, dispatcher's
buffers) is not in ours, which is what the framework's allocator would report without them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moesim.model import load
from moesim.model.attention import GroupedQueryAttention
from moesim.model.dtypes import Dtypes
from moesim.model.spec import LayerSpec, ModelSpec, MoeSpec
from moesim.parallel.train_plan import TrainPlan
from moesim.training.activations import EXPERTS, Rows, saved_tensors, total
from moesim.training.layout import even
from moesim.training.memory import Demand, allocated_bytes, demand_of, train_ledger
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import schedules
from moesim.training.states import States
from moesim.units import GB
from moesim.validate.claims import Claim, Progress, published

PAIR_TOLERANCE = 0.05
ABSOLUTE_TOLERANCE = 0.10
GROWTH_TOLERANCE = 0.25
SHARE_TOLERANCE = 5.0

FORWARD_BUFFERS = 3
"""Beside what its backward pass would keep, a forward pass of expert layers holds each copy as it arrived, as
it leaves the experts, and in the order in which it is sent back. [-]"""


def claims(seed: int = 0, progress: Progress | None = None) -> list[Claim]:
    """All rows of all runs, LLEP's growth, Hecate's share."""
    data = published("training_memory").data
    tell = progress or (lambda name: None)
    found: list[Claim] = []
    for run in data["runs"]:
        tell(run["name"])
        found += _run(run)
    for model in data["llep"]["models"]:
        found += _llep(data["llep"], model)
    return [*found, _hecate(data["hecate"])]


def _run(run: Mapping[str, Any]) -> Iterator[Claim]:
    """Absolute peak of every row, and each row over the first."""
    ours = [_peak_bytes({**run, **row}) for row in run["rows"]]
    note = run.get("note", "")
    for row, simulated in zip(run["rows"], ours, strict=True):
        yield Claim(
            f"{run['name']}, {row['name']}",
            run["source"],
            "GB",
            float(row["gb"]),
            simulated / GB,
            ABSOLUTE_TOLERANCE,
            note=row.get("note", note),
        )
    first = run["rows"][0]
    for row, simulated in zip(run["rows"][1:], ours[1:], strict=True):
        yield Claim(
            f"{run['name']}, {row['name']} over {first['name']}",
            run["source"],
            "x",
            row["gb"] / first["gb"],
            simulated / ours[0],
            PAIR_TOLERANCE,
            note=row.get("note", note),
        )


def _peak_bytes(row: Mapping[str, Any]) -> float:
    """Fullest stage's peak of a run."""
    model = load(row["model"])
    plan = TrainPlan(**row["plan"])
    modules = tuple(row.get("modules", ()))
    schedule = schedules.build("interleaved" if plan.vpp > 1 else "1f1b")
    demand = demand_of(
        schedule,
        row.get("num_microbatches", plan.pp),
        plan,
        model=model,
        dtypes=Dtypes(**row.get("dtypes", {})),
        states=States(**row["states"]),
        recompute=Recompute("selective" if modules else "none", modules),
        layout=even(model.num_layers, plan.pp * plan.vpp),
        micro_batch_size=row["micro_batch_size"],
        sequence_length=row["sequence_length"],
        loss_fp32=row["loss_fp32"],
        first_step=row.get("first_step", False),
    )
    return float(allocated_bytes(train_ledger(demand, capacity_bytes=0.0)).max())


def _llep(table: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[Claim]:
    """How much more the hot device needs when a fraction of all choices goes into its experts."""
    ranks, hot, experts = table["ranks"], table["hot_experts"], model["experts"]
    copies = model["tokens_per_gpu"] * model["top_k"] * ranks
    balanced = _forward_bytes(model, copies / ranks)
    for fraction, gb in zip(table["hot_fractions"], model["gb"], strict=True):
        cold = (1 - fraction) * (experts // ranks - hot) / (experts - hot)
        grown = _forward_bytes(model, copies * (fraction + cold)) - balanced
        yield Claim(
            f"LLEP {model['name']}, {100 * fraction:.0f} % into {hot}, more than balanced",
            table["source"],
            "GB",
            float(gb - model["balanced"]),
            grown / GB,
            GROWTH_TOLERANCE,
            note=table["note"],
        )


def _forward_bytes(model: Mapping[str, Any], copies: float) -> float:
    """What token copies take on one rank in the forward pass of an expert layer."""
    moe = MoeSpec(model["experts"], model["top_k"], model["width"])
    layer = LayerSpec(GroupedQueryAttention(1, 1, 1, 1), moe, 0)
    dtypes = Dtypes()
    tensors = saved_tensors(layer, model["hidden"], Rows(0.0, copies), dtypes)
    arrived = next(tensor.num_bytes for tensor in tensors if tensor.name == "dispatched tokens")
    return total(tensors, EXPERTS) + FORWARD_BUFFERS * arrived


def _hecate(table: Mapping[str, Any]) -> Claim:
    """Materialised experts that are dropped after each layer, mean over the paper's models."""
    shares = []
    for model in table["models"]:
        none, kept, again = (
            _gathered_bytes(table, model, experts, rematerialise=again)
            for experts, again in ((0.0, False), (1.0, False), (1.0, True))
        )
        shares.append(100 * (1 - (again - none) / (kept - none)))
    return Claim(
        "Hecate, less for materialised experts with re-materialisation",
        table["source"],
        "%",
        float(table["less"]),
        float(np.mean(shares)),
        SHARE_TOLERANCE,
        absolute=True,
        note="two layers at once: one computes, the next is gathered",
    )


def _gathered_bytes(
    table: Mapping[str, Any], model: Mapping[str, Any], experts: float, *, rematerialise: bool
) -> float:
    hidden, layers, devices = model["hidden"], model["layers"], table["devices"]
    moe = MoeSpec(table["experts"], 2, 2 * hidden, gated=False)
    layer = LayerSpec(GroupedQueryAttention(12, 12, 64, 64), moe, 2 * hidden)
    spec = ModelSpec(model["name"], hidden, 1, (layer,) * layers)
    demand = Demand(
        model=spec,
        plan=TrainPlan(dp=devices, ep=devices),
        dtypes=Dtypes(),
        states=States("fssdp", materialised_experts=experts, rematerialise=rematerialise),
        recompute=Recompute(),
        layout=[tuple(range(layers))],
        part_of=np.zeros((1, 1), dtype=np.int64),
        in_flight=np.ones((1, 1)),
        micro_batch_size=1,
        sequence_length=1,
    )
    return float(train_ledger(demand, capacity_bytes=0.0).parts["gathered weights"][0])
