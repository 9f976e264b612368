"""Memory of a training scenario: what every stage keeps, and what to change where it does not fit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.memory.ledger import Ledger
from moesim.model.dtypes import storage_format
from moesim.parallel.train_plan import TrainPlan
from moesim.scenario.schema import Scenario
from moesim.training.layout import even
from moesim.training.memory import Demand, demand_of, train_ledger
from moesim.training.memory_remedy import check
from moesim.training.schedules.base import Geometry, num_parts
from moesim.training.schedules.base import check as check_schedule
from moesim.training.step import TrainSetup


def checked_ledger(setup: TrainSetup, capacity_bytes: float, inner_dtype: str = "") -> Ledger:
    """Ledger of every stage's fullest rank; inputs of activation functions are kept in ``inner_dtype``.

    Raises
    ------
    InfeasibleError
        A stage is over; names the smallest changes that fit.
    """
    overload = _overload(setup)
    demand = _demand(setup, setup.work.plan, setup.layout, overload, inner_dtype)

    def reshaped(plan: TrainPlan) -> Demand:
        geometry = Geometry(plan.pp, setup.num_microbatches * setup.work.plan.dp // plan.dp, plan.vpp)
        check_schedule(setup.schedule, geometry, field="training.schedule")
        parts = num_parts(setup.schedule, geometry)
        if parts > setup.model.num_layers:
            raise InputError.at("plan.pp", plan.pp, f"at most {setup.model.num_layers} parts")
        worst = np.full(plan.pp, overload.max())
        return _demand(setup, plan, even(setup.model.num_layers, parts), worst, inner_dtype)

    return check(demand, capacity_bytes=capacity_bytes, reshaped=reshaped)


def ledger_of(setup: TrainSetup, capacity_bytes: float, inner_dtype: str = "") -> Ledger:
    """As :func:`checked_ledger`, whether it fits or not."""
    demand = _demand(setup, setup.work.plan, setup.layout, _overload(setup), inner_dtype)
    return train_ledger(demand, capacity_bytes=capacity_bytes)


def memory_of(scenario: Scenario) -> tuple[float, str]:
    """Capacity of a device, and the format in which inputs of activation functions are kept. [bytes]"""
    inner_dtype = scenario.training.kept_inner_dtype
    if inner_dtype:
        storage_format(inner_dtype, field="training.kept_inner_dtype")
    return scenario.cluster.node.device.main_memory.capacity_bytes, inner_dtype


def memory_view(ledger: Ledger, stage_size: int) -> dict[str, Any]:
    """Bytes by part of each stage's fullest rank, against the capacity."""
    return {
        "capacity_bytes": ledger.capacity_bytes,
        "per_rank": [
            {
                "ranks": f"{stage * stage_size}-{(stage + 1) * stage_size - 1}",
                "parts": {name: float(size[stage]) for name, size in ledger.parts.items()},
                "free_bytes": float(ledger.free_bytes[stage]),
            }
            for stage in range(len(ledger.need_bytes))
        ],
    }


def _demand(
    setup: TrainSetup,
    plan: TrainPlan,
    layout: tuple[tuple[int, ...], ...],
    overload: NDArray[np.float64],
    inner_dtype: str,
) -> Demand:
    batch = setup.work.batch
    microbatches = max(setup.num_microbatches * setup.work.plan.dp // plan.dp, 1)
    return demand_of(
        setup.schedule,
        microbatches,
        plan,
        model=setup.model,
        dtypes=setup.work.dtypes,
        states=setup.states,
        recompute=setup.recompute,
        layout=layout,
        micro_batch_size=batch.micro_batch_size,
        sequence_length=batch.sequence_length,
        expert_overload=overload,
        helped=_helped(setup, plan),
        mtp=setup.mtp,
        inner_dtype=inner_dtype,
    )


def _helped(setup: TrainSetup, plan: TrainPlan) -> dict[int, NDArray[np.float64]]:
    """Experts of others on each rank of a group, by layer; under another plan nobody is known to help.

    Copies that are known ahead are among the states instead: they stay for a step, or are gathered again.
    """
    spread = setup.work.spread
    if spread is None or spread.ahead or (plan.ep, plan.etp) != (setup.work.plan.ep, setup.work.plan.etp):
        return {}
    counts = spread.sent.sum(axis=-2).mean(axis=0)
    return {layer: own for layer, own in zip(setup.model.moe_layers, counts, strict=True) if own.any()}


def _overload(setup: TrainSetup) -> NDArray[np.float64]:
    """Token copies of the fullest expert rank of each stage over the mean, over its layers, ``(stage,)``."""
    work, geometry, schedule = setup.work, setup.geometry, setup.schedule
    found = np.ones(geometry.num_stages)
    row_of = {layer: row for row, layer in enumerate(setup.model.moe_layers)}
    for stage in range(geometry.num_stages):
        parts = {schedule.part_of(stage, chunk, geometry) for chunk in range(geometry.num_chunks)}
        rows: NDArray[np.float64] | float = 0.0
        for part in parts:
            for layer in setup.layout[part]:
                moe = setup.model.layers[layer].moe
                if moe is not None:
                    rows = rows + work.load(moe).load.rows[:, row_of[layer]]
        if isinstance(rows, np.ndarray):
            found[stage] = float((rows.max(axis=-1) / rows.mean(axis=-1)).max())
    return found
