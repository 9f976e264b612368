"""``moesim train memory``: what every stage of a plan keeps, and what to change where it does not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.units import GIB, fmt_bytes

if TYPE_CHECKING:
    from moesim.memory.ledger import Ledger
    from moesim.model import ModelSpec
    from moesim.parallel.train_plan import TrainPlan
    from moesim.training.memory import Demand
    from moesim.training.schedules.base import Schedule

COLUMNS_MAX = 8

Degree = Annotated[int, typer.Option(min=1)]


def memory(
    model: Annotated[str, typer.Argument(help="Bundled name, a config.json, or a folder that holds one.")],
    *,
    tp: Degree = 1,
    cp: Degree = 1,
    dp: Degree = 1,
    pp: Degree = 1,
    vpp: Degree = 1,
    ep: Degree = 1,
    etp: Degree = 1,
    micro_batch: Annotated[int, typer.Option(min=1, help="Sequences of a microbatch.")] = 1,
    sequence: Annotated[int, typer.Option(min=1, help="Tokens of a sequence. [tokens]")] = 4096,
    microbatches: Annotated[int, typer.Option(min=0, help="Of each replica; 0: four a stage.")] = 0,
    schedule: Annotated[str, typer.Option(help="Schedule; default 1f1b, interleaved with --vpp.")] = "",
    sharding: Annotated[str, typer.Option(help="none, zero1, zero2, zero3, fsdp or fssdp.")] = "zero1",
    gradients: Annotated[str, typer.Option(help="Format of gradients.")] = "fp32",
    master: Annotated[str, typer.Option(help="Format of the optimizer's copy, none or remainder.")] = "fp32",
    moments: Annotated[str, typer.Option(help="Format of the optimizer's moments.")] = "fp32",
    offload: Annotated[float, typer.Option(help="Share of the optimizer in host memory. [-]")] = 0.0,
    recompute: Annotated[str, typer.Option(help="none, full, or modules, comma-separated.")] = "none",
    overload: Annotated[
        float, typer.Option(min=1, help="Tokens of the fullest expert rank over mean.")
    ] = 1.0,
    mtp: Annotated[bool, typer.Option("--mtp", help="Train multi-token prediction modules, too.")] = False,
    device: Annotated[str, typer.Option(help="Device profile, for its memory.")] = "h100_sxm",
    json: bool = JSON_OPTION,
) -> None:
    """Memory of every stage of a plan; exit code 4 with need, have and what would fit if it does not."""
    from moesim.hardware.load import load_device  # noqa: PLC0415
    from moesim.model import load  # noqa: PLC0415
    from moesim.parallel.train_plan import TrainPlan, check  # noqa: PLC0415
    from moesim.training.memory_remedy import DEVICES_MAX  # noqa: PLC0415
    from moesim.training.memory_remedy import check as check_memory  # noqa: PLC0415
    from moesim.training.schedules.base import schedules  # noqa: PLC0415
    from moesim.training.states import States  # noqa: PLC0415

    spec = load(model, field="MODEL")
    plan = TrainPlan(tp=tp, cp=cp, dp=dp, pp=pp, vpp=vpp, ep=ep, etp=etp)
    check(plan, spec, DEVICES_MAX)
    chosen = schedules.build(schedule or ("interleaved" if vpp > 1 else "1f1b"), field="--schedule")
    fields: dict[str, Any] = {
        "states": States(
            sharding, gradients=gradients, master=master, moments=moments, offload_fraction=offload
        ),
        "recompute": _policy(recompute),
        "micro_batch_size": micro_batch,
        "sequence_length": sequence,
        "expert_overload": overload,
        "mtp": mtp,
    }

    def under(changed: TrainPlan) -> Demand:
        return _demand(spec, changed, chosen, microbatches or 4 * changed.pp, fields)

    capacity = load_device(device).main_memory.capacity_bytes
    result = check_memory(under(plan), capacity_bytes=capacity, reshaped=under)
    _show(spec, result, json)


def _policy(text: str) -> Any:
    from moesim.training.recompute import Recompute  # noqa: PLC0415

    if text in ("none", "full"):
        return Recompute("full" if text == "full" else "none")
    return Recompute("selective", tuple(text.split(",")))


def _demand(
    model: ModelSpec, plan: TrainPlan, schedule: Schedule, microbatches: int, fields: dict[str, Any]
) -> Demand:
    from moesim.model import Dtypes  # noqa: PLC0415
    from moesim.training.layout import even  # noqa: PLC0415
    from moesim.training.memory import demand_of  # noqa: PLC0415
    from moesim.training.schedules.base import Geometry, check, num_parts  # noqa: PLC0415

    geometry = Geometry(plan.pp, microbatches, plan.vpp)
    check(schedule, geometry, field="--schedule")
    layout = even(model.num_layers, num_parts(schedule, geometry))
    return demand_of(schedule, microbatches, plan, model=model, dtypes=Dtypes(), layout=layout, **fields)


def _show(model: ModelSpec, ledger: Ledger, json: bool) -> None:
    need = ledger.need_bytes
    metrics = {
        "peak_bytes": {"value": float(need.max()), "unit": "bytes"},
        "capacity_bytes": {"value": float(ledger.capacity_bytes), "unit": "bytes"},
    }
    if json:
        rows = [
            {"stage": stage, "need_bytes": float(need[stage])}
            | {"parts": {name: float(size[stage]) for name, size in ledger.parts.items()}}
            for stage in range(len(need))
        ]
        emit_json(envelope("train memory", model=model.name, metrics=metrics, rows=rows))
        return
    stages = range(min(len(need), COLUMNS_MAX))
    shown = [[name, *(fmt_bytes(size[stage]) for stage in stages)] for name, size in ledger.parts.items()]
    shown.append(["need", *(fmt_bytes(need[stage]) for stage in stages)])
    title = f"{model.name}: fullest rank of each stage, {ledger.capacity_bytes / GIB:.0f} GiB there"
    columns = ["", *(f"stage {stage}" for stage in stages)]
    table(title, columns, shown, right=range(1, len(columns)))
    if len(need) > COLUMNS_MAX:
        typer.echo(f"and {len(need) - COLUMNS_MAX} more stages; the fullest is stage {ledger.fullest_rank}")
