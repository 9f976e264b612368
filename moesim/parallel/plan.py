"""The parallel plan: which rank belongs to which tensor-, data-, expert- and pipeline-parallel group.

A stage has ``tp * attention_dp`` ranks. Its experts are spread over the same ranks as
``ep * moe_tp``: expert parallelism is carved out of the stage, never an extra factor. Ranks are
counted stage by stage, in a stage group by group, in a group tensor rank by tensor rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.model.spec import ModelSpec

Ranks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Plan:
    """Degrees of parallelism.

    Attributes
    ----------
    tp : int
        Tensor-parallel ranks of attention and dense layers. [-]
    pp : int
        Pipeline stages. [-]
    attention_dp : int
        Attention data-parallel groups of a stage. [-]
    ep : int
        Expert-parallel ranks of a stage. [-]
    moe_tp : int
        Tensor-parallel ranks inside each expert. [-]
    """

    tp: int = 1
    pp: int = 1
    attention_dp: int = 1
    ep: int = 1
    moe_tp: int = 1

    @classmethod
    def of(
        cls,
        tp: int = 1,
        pp: int = 1,
        attention_dp: int = 1,
        ep: int | None = None,
        moe_tp: int | None = None,
    ) -> Plan:
        """Plan whose missing expert degrees follow from the others; by default all ranks hold whole experts."""
        stage = tp * attention_dp
        if ep is None:
            ep = stage // moe_tp if moe_tp else stage
        if moe_tp is None:
            moe_tp = max(1, stage // ep)
        return cls(tp, pp, attention_dp, ep, moe_tp)

    @property
    def stage_size(self) -> int:
        """Ranks of one stage."""
        return self.tp * self.attention_dp

    @property
    def num_devices(self) -> int:
        """All ranks."""
        return self.pp * self.stage_size

    def stage_ranks(self, stage: int) -> Ranks:
        """Global ranks of a stage, ``(stage_size,)``."""
        return np.arange(stage * self.stage_size, (stage + 1) * self.stage_size)

    def ep_rank(self) -> Ranks:
        """Expert-parallel index of each rank of a stage; runs of ``moe_tp`` ranks share one, ``(stage_size,)``."""
        return np.arange(self.stage_size) // self.moe_tp

    def stage_layers(self, num_layers: int) -> list[tuple[int, ...]]:
        """Consecutive layers of each stage; the first ``num_layers % pp`` stages hold one more."""
        short, extra = divmod(num_layers, self.pp)
        sizes = [short + (stage < extra) for stage in range(self.pp)]
        starts = np.cumsum([0, *sizes])
        return [tuple(range(int(starts[s]), int(starts[s + 1]))) for s in range(self.pp)]


def plan_problems(plan: Plan, model: ModelSpec, num_slots: int, cluster_devices: int) -> list[Problem]:
    """Everything that keeps ``plan`` from running ``model``, with the accepted values.

    Parameters
    ----------
    plan : Plan
    model : ModelSpec
    num_slots : int
        Physical expert slots of a layer, replicas included; 0 for a dense model.
    cluster_devices : int
        Devices that there are.
    """
    problems = []
    if plan.stage_size != plan.ep * plan.moe_tp:
        message = (
            f"got {plan.ep} (moe_tp {plan.moe_tp}), but tp * attention_dp = {plan.stage_size} must equal "
            f"ep * moe_tp; accepted: {_listed(_divisors(plan.stage_size))}"
        )
        problems.append(Problem("plan.ep", message))
    if num_slots and num_slots % plan.ep:
        message = (
            f"got {plan.ep}, which does not divide the {num_slots} expert slots of a layer "
            f"(model.num_experts={model.num_experts}); accepted: {_listed(_divisors(num_slots))}"
        )
        problems.append(Problem("plan.ep", message))
    for name, count in model.sharded_counts.items():
        if not _shards(count, plan.tp, name):
            message = (
                f"got {plan.tp}, which does not divide {name}={count}; accepted: {_listed(_divisors(count))}"
            )
            problems.append(Problem("plan.tp", message))
    if plan.pp > model.num_layers:
        problems.append(Problem("plan.pp", f"got {plan.pp}; accepted: 1 to {model.num_layers} (the layers)"))
    if plan.num_devices > cluster_devices:
        message = (
            f"pp * tp * attention_dp = {plan.num_devices} devices, the cluster has {cluster_devices}; "
            "accepted: a product that fits"
        )
        problems.append(Problem("plan", message))
    widths = {layer.moe.expert_width for layer in model.layers if layer.moe}
    for width in sorted(widths):
        if width % plan.moe_tp:
            message = f"got {plan.moe_tp}, which does not divide the expert width {width}"
            problems.append(Problem("plan.moe_tp", message))
    return problems


def check(plan: Plan, model: ModelSpec, num_slots: int, cluster_devices: int) -> None:
    """Raise all of :func:`plan_problems` as one InputError."""
    problems = plan_problems(plan, model, num_slots, cluster_devices)
    if problems:
        raise InputError(problems, source="plan")


def _shards(count: int, tp: int, name: str) -> bool:
    """Whether heads divide; key/value heads may also be replicated over more ranks than heads."""
    return count % tp == 0 or ("kv" in name and tp % count == 0)


def _divisors(number: int) -> list[int]:
    return [d for d in range(1, number + 1) if number % d == 0]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
