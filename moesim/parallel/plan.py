"""The parallel plan: which rank belongs to which tensor-, data-, expert- and pipeline-parallel group.

A stage has ``tp * attention_dp`` ranks. Its experts are spread over the same ranks as
``ep * moe_tp``: expert parallelism is carved out of the stage, never an extra factor. Ranks are
counted stage by stage, in a stage group by group, in a group tensor rank by tensor rank::

    rank = (stage * attention_dp + dp_index) * tp + tp_index = (stage * ep + ep_index) * moe_tp + moe_tp_index
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem

Ranks = NDArray[np.int64]


class Splittable(Protocol):
    """What a plan must know of a model."""

    @property
    def num_layers(self) -> int:
        """Layers that stages share. [-]"""

    @property
    def num_experts(self) -> int:
        """Routed experts of a layer, 0 without. [-]"""

    @property
    def sharded_counts(self) -> Mapping[str, int]:
        """Named head counts that tensor parallelism must divide."""

    @property
    def expert_widths(self) -> tuple[int, ...]:
        """Inner widths of routed experts, which expert tensor parallelism must divide."""

    @property
    def repeats_experts(self) -> bool:
        """Some layers use the experts of the one before, which no other stage may hold."""


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

    def __post_init__(self) -> None:
        wrong = [f.name for f in fields(self) if getattr(self, f.name) < 1]
        if wrong:
            raise InputError(
                [
                    Problem(f"plan.{n}", f"got {getattr(self, n)}; accepted: a whole number >= 1")
                    for n in wrong
                ]
            )

    @classmethod
    def of(
        cls,
        tp: int = 1,
        pp: int = 1,
        attention_dp: int = 1,
        ep: int | None = None,
        moe_tp: int | None = None,
    ) -> Plan:
        """Plan whose missing expert degrees follow from the others; by default experts stay whole."""
        stage = tp * attention_dp
        if ep is None:
            ep = max(1, stage // moe_tp) if moe_tp else stage
        if moe_tp is None:
            moe_tp = max(1, stage // ep) if ep > 0 else 1
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
        """Expert-parallel index of each rank of a stage, equal in runs of ``moe_tp``, ``(stage_size,)``."""
        return np.arange(self.stage_size) // self.moe_tp

    def stage_of(self, ranks: Ranks) -> Ranks:
        """Pipeline stage of each of ``ranks``."""
        return ranks // self.stage_size

    def dp_index(self, ranks: Ranks) -> Ranks:
        """Attention data-parallel index of each of ``ranks`` within its stage."""
        return ranks % self.stage_size // self.tp

    def tp_group(self, ranks: Ranks) -> Ranks:
        """Number of the tensor-parallel group of each of ``ranks``; groups are numbered over all stages."""
        return ranks // self.tp

    def moe_tp_group(self, ranks: Ranks) -> Ranks:
        """Number of the group that shares the same experts, column by column, over all stages."""
        return ranks // self.moe_tp

    def ep_group(self, ranks: Ranks) -> Ranks:
        """Number of the group over which the experts of a stage are spread, over all stages."""
        return self.stage_of(ranks) * self.moe_tp + ranks % self.moe_tp

    def pipeline_peer(self, ranks: Ranks, offset: int = 1) -> Ranks:
        """Rank at the same place ``offset`` stages on; -1 where there is none."""
        peer = ranks + offset * self.stage_size
        return np.where((peer >= 0) & (peer < self.num_devices), peer, -1)

    def stage_layers(self, num_layers: int) -> list[tuple[int, ...]]:
        """Consecutive layers of each stage; the first ``num_layers % pp`` stages hold one more."""
        short, extra = divmod(num_layers, self.pp)
        sizes = [short + (stage < extra) for stage in range(self.pp)]
        starts = np.cumsum([0, *sizes])
        return [tuple(range(int(starts[s]), int(starts[s + 1]))) for s in range(self.pp)]


def plan_problems(plan: Plan, model: Splittable, num_slots: int, cluster_devices: int) -> list[Problem]:
    """Everything that keeps ``plan`` from running ``model``, with the accepted values.

    Parameters
    ----------
    plan : Plan
    model : Splittable
        Usually a :class:`moesim.model.spec.ModelSpec`.
    num_slots : int
        Physical expert slots of a layer, replicas included; 0 for a dense model.
    cluster_devices : int
        Devices that there are.
    """
    return [
        *_expert_problems(plan, model, num_slots),
        *_head_problems(plan, model),
        *_size_problems(plan, model, cluster_devices),
    ]


def _expert_problems(plan: Plan, model: Splittable, num_slots: int) -> list[Problem]:
    stage = plan.stage_size
    fitting = [d for d in divisors(stage) if num_slots % d == 0]
    problems = []
    if stage != plan.ep * plan.moe_tp:
        message = (
            f"got {plan.ep} (moe_tp {plan.moe_tp}), but tp * attention_dp = {stage} must equal "
            f"ep * moe_tp; accepted: {_listed(fitting)}"
        )
        problems.append(Problem("plan.ep", message))
    if num_slots % plan.ep:
        replicas = num_slots - model.num_experts
        slots = f"model.num_experts={model.num_experts}" + (
            f" + {replicas} replica slots" if replicas else ""
        )
        message = f"got {plan.ep}, which does not divide {slots}; accepted: {_listed(fitting)}"
        problems.append(Problem("plan.ep", message))
    problems += [
        Problem(
            "plan.moe_tp",
            f"got {plan.moe_tp}, which does not divide the expert width {width}; "
            f"accepted: {_listed([d for d in divisors(width) if d <= stage])}",
        )
        for width in model.expert_widths
        if width % plan.moe_tp
    ]
    return problems


def _head_problems(plan: Plan, model: Splittable) -> list[Problem]:
    counts = model.sharded_counts
    candidates = divisors(counts.get("num_heads", max(counts.values(), default=1)))
    fitting = [tp for tp in candidates if all(shards(n, tp, name) for name, n in counts.items())]
    return [
        Problem("plan.tp", f"got {plan.tp}, which does not divide {name}={n}; accepted: {_listed(fitting)}")
        for name, n in counts.items()
        if not shards(n, plan.tp, name)
    ]


def shards(count: int, tp: int, name: str) -> bool:
    """Whether heads divide over ranks; key/value heads may also be replicated over a multiple of them."""
    return count % tp == 0 or (name == "num_kv_heads" and tp % count == 0)


def sharing_problems(pp: int, model: Splittable) -> list[Problem]:
    """Why a pipeline cannot cut a model whose layers share experts."""
    if pp == 1 or not model.repeats_experts:
        return []
    return [Problem("plan.pp", f"got {pp}; accepted: 1, for layers that share experts must share a stage")]


def _size_problems(plan: Plan, model: Splittable, cluster_devices: int) -> list[Problem]:
    problems = []
    problems += sharing_problems(plan.pp, model)
    if plan.pp > model.num_layers:
        problems.append(Problem("plan.pp", f"got {plan.pp}; accepted: 1 to {model.num_layers} (the layers)"))
    if plan.num_devices > cluster_devices:
        message = (
            f"pp * tp * attention_dp = {plan.num_devices} devices, the cluster has {cluster_devices}; "
            "accepted: a product that fits"
        )
        problems.append(Problem("plan", message))
    return problems


def check(plan: Plan, model: Splittable, num_slots: int, cluster_devices: int) -> None:
    """Raise all of :func:`plan_problems` as one InputError."""
    problems = plan_problems(plan, model, num_slots, cluster_devices)
    if problems:
        raise InputError(problems, source="plan")


def divisors(number: int) -> list[int]:
    """Divisors of a whole number >= 1, ascending.

    Examples
    --------
    >>> divisors(12)
    [1, 2, 3, 4, 6, 12]
    """
    small = [d for d in range(1, int(number**0.5) + 1) if number % d == 0]
    return sorted({*small, *(number // d for d in small)})


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers)) or "none"
