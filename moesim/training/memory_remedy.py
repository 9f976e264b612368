"""What to do when a training plan does not fit: the smallest change of each kind that does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from moesim.errors import InfeasibleError, InputError
from moesim.memory.ledger import Ledger
from moesim.memory.remedy import COLUMNS_MAX, ledger_lines
from moesim.parallel.train_plan import TrainPlan
from moesim.parallel.train_plan import check as check_plan
from moesim.training.memory import Demand, kept_activations, train_ledger
from moesim.training.recompute import Recompute
from moesim.training.states import SHARED_OUT, States
from moesim.units import fmt_bytes

DEVICES_MAX = 16384
"""Largest world that is tried."""

SELECTIVE = ("core_attn", "layernorm", "moe_act", "mla_up_proj", "shared_experts", "mlp", "moe")
"""Modules in the order of what running them again costs: each step adds the next one to those before."""

Reshaped: TypeAlias = Callable[[TrainPlan], Demand]
"""The same demand under another plan: its layout and the microbatches in flight come from the schedule."""

Change: TypeAlias = tuple[str, Demand]


def check(demand: Demand, *, capacity_bytes: float, reshaped: Reshaped | None = None) -> Ledger:
    """Ledger of a demand that fits.

    Parameters
    ----------
    demand : Demand
    capacity_bytes : float
        Of one device. [bytes]
    reshaped : callable, optional
        How the demand looks under a plan with more stages or chunks; without it these are not tried.

    Raises
    ------
    InfeasibleError
        Some stage is over: need and have by part, and the smallest change of each kind that fits.
    """
    result = train_ledger(demand, capacity_bytes=capacity_bytes)
    if result.fits:
        return result
    raise InfeasibleError(_explanation(demand, result, remedies(demand, capacity_bytes, reshaped)))


def _explanation(demand: Demand, result: Ledger, found: list[str]) -> str:
    over = int((result.free_bytes < 0).sum())
    worst = result.fullest_rank
    stages = np.argsort(-result.need_bytes, kind="stable")[:COLUMNS_MAX]
    lines = [
        f"{demand.model.name} does not fit: {over} of {demand.plan.pp} stages are over; stage {worst} needs "
        f"{fmt_bytes(result.need_bytes[worst])}, has {fmt_bytes(result.capacity_bytes)}",
        *ledger_lines(result, {f"stage {stage}": int(stage) for stage in stages}),
        "  fits with one of: " + "; ".join(found) if found else "  no single change that was tried would fit",
    ]
    return "\n".join(lines)


def remedies(demand: Demand, capacity_bytes: float, reshaped: Reshaped | None = None) -> list[str]:
    """Smallest change of each kind that fits, in words; kinds without one are left out.

    Tried: more recomputation, a smaller microbatch, more sharding of states, narrower states, offload, more
    tensor- or expert-parallel ranks on the same devices, more stages or chunks (where ``reshaped`` is given),
    balanced experts (or a smaller capacity factor).
    """
    kinds: list[Iterator[Change]] = [
        _recompute(demand),
        _microbatch(demand),
        _sharding(demand),
        _narrower(demand),
        _offload(demand),
        _tensor_parallel(demand),
        _expert_parallel(demand),
        _reshaped(demand, "pp", reshaped),
        _reshaped(demand, "vpp", reshaped),
        _balanced(demand),
    ]
    fits = partial(_fits, capacity_bytes=capacity_bytes)
    matches = (next((text for text, changed in kind if fits(changed)), None) for kind in kinds)
    return [text for text in matches if text is not None]


def _fits(demand: Demand, capacity_bytes: float) -> bool:
    try:
        check_plan(demand.plan, demand.model, DEVICES_MAX)
    except InputError:
        return False
    return train_ledger(demand, capacity_bytes=capacity_bytes).fits


def _recompute(demand: Demand) -> Iterator[Change]:
    if demand.recompute.granularity == "full":
        return
    best = demand
    for name in SELECTIVE:
        changed = replace(demand, recompute=Recompute("selective", (*best.recompute.modules, name)))
        if _kept(changed) < _kept(best):
            best = changed
            yield f"recompute.modules={changed.recompute}".replace("+", ","), changed
    yield "recompute.granularity=full", replace(demand, recompute=Recompute("full"))


def _kept(demand: Demand) -> float:
    """Activations that all stages keep together. [bytes]"""
    return float(np.sum(kept_activations(demand)))


def _microbatch(demand: Demand) -> Iterator[Change]:
    for size in range(demand.micro_batch_size - 1, 0, -1):
        if demand.micro_batch_size % size == 0:
            yield f"micro_batch_size={size}", replace(demand, micro_batch_size=size)


def _sharding(demand: Demand) -> Iterator[Change]:
    now = SHARED_OUT[demand.states.sharding]
    for name in ("zero1", "zero2", "zero3"):
        if now < SHARED_OUT[name]:
            yield f"states.sharding={name}", _with_states(demand, sharding=name)


def _narrower(demand: Demand) -> Iterator[Change]:
    states = demand.states
    if states.gradients == "fp32":
        yield "states.gradients=bf16", _with_states(demand, gradients="bf16")
    if states.moments == "fp32":
        both = {"gradients": "bf16", "moments": "bf16"}
        yield "states.gradients=bf16 and states.moments=bf16", _with_states(demand, **both)


def _offload(demand: Demand) -> Iterator[Change]:
    for quarter in range(1, 5):
        share = quarter / 4
        if share > demand.states.offload_fraction:
            yield f"states.offload_fraction={share:g}", _with_states(demand, offload_fraction=share)


def _with_states(demand: Demand, **fields: object) -> Demand:
    states: States = replace(demand.states, **fields)  # type: ignore[arg-type]
    return replace(demand, states=states)


def _tensor_parallel(demand: Demand) -> Iterator[Change]:
    plan = demand.plan
    for factor in range(2, plan.dp + 1):
        if plan.dp % factor == 0:
            tp = plan.tp * factor
            changed = replace(plan, tp=tp, dp=plan.dp // factor, etp=plan.etp if plan.folded else tp)
            yield f"plan.tp={tp} (dp={changed.dp})", replace(demand, plan=changed)


def _expert_parallel(demand: Demand) -> Iterator[Change]:
    plan = demand.plan
    for ep in range(plan.ep + 1, min(plan.stage_size // plan.etp, demand.model.num_experts) + 1):
        changed = replace(plan, ep=ep)
        yield f"plan.ep={ep} (edp={changed.edp})", replace(demand, plan=changed)


def _reshaped(demand: Demand, degree: str, reshaped: Reshaped | None) -> Iterator[Change]:
    """More stages on more devices, or more chunks; the schedule says whether it can run them."""
    start = getattr(demand.plan, degree)
    most = min(demand.model.num_layers, DEVICES_MAX * start // demand.plan.num_devices)
    for number in range(start + 1, (most if reshaped else start) + 1):
        assert reshaped is not None
        plan = demand.plan
        changed = replace(plan, pp=number) if degree == "pp" else replace(plan, vpp=number)
        try:
            check_plan(changed, demand.model, DEVICES_MAX)
            yield f"plan.{degree}={number} ({changed.num_devices} devices)", reshaped(changed)
        except InputError:
            continue


def _balanced(demand: Demand) -> Iterator[Change]:
    """A bound on the fullest rank's tokens: by balancing, or by dropping at that capacity."""
    worst = float(np.max(demand.expert_overload))
    for tenth in range(int(10 * worst), 9, -1):
        bound = tenth / 10
        if bound < worst:
            lower = np.minimum(demand.expert_overload, bound)
            yield (
                f"at most {bound:g} times the mean tokens on a rank",
                replace(demand, expert_overload=lower),
            )
