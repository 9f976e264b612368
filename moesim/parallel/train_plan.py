"""Degrees of parallelism of training: attention and experts share the ranks of a stage in two ways.

A stage has ``tp * cp * dp`` ranks for attention and dense layers and the same ranks as ``etp * ep * edp``
for experts; only the pipeline is common to both (MoE Parallel Folding). Ranks are counted stage by stage,
the tensor-parallel index fastest::

    rank = ((stage * dp + dp_index) * cp + cp_index) * tp + tp_index

and for the experts, folded over all of these or, as before folding, over data-parallel ranks alone::

    folded      rank = ((stage * edp + edp_index) * ep + ep_index) * etp + etp_index
    not folded  rank = (((stage * edp + edp_index) * ep + ep_index) * cp + cp_index) * tp + tp_index, etp = tp
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.parallel.plan import Splittable, shards, sharing_problems

Ranks = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TrainPlan:
    """Degrees of parallelism of a training step.

    Attributes
    ----------
    tp, cp, dp : int
        Tensor-, context- and data-parallel ranks of attention and dense layers. [-]
    pp : int
        Pipeline stages. [-]
    vpp : int
        Chunks of layers that each stage holds (virtual stages). [-]
    ep, etp : int
        Expert-parallel ranks, and tensor-parallel ranks inside an expert. [-]
    folded : bool
        Whether expert groups may run over tensor- and context-parallel ranks.
    """

    tp: int = 1
    cp: int = 1
    dp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    folded: bool = True

    @property
    def stage_size(self) -> int:
        """Ranks of one stage."""
        return self.tp * self.cp * self.dp

    @property
    def num_devices(self) -> int:
        """All ranks."""
        return self.pp * self.stage_size

    @property
    def edp(self) -> int:
        """Replicas of each expert in a stage."""
        return self.stage_size // (self.ep * self.etp)

    def tp_ranks(self) -> Ranks:
        """First tensor-parallel group, ``(tp,)``."""
        return np.arange(self.tp)

    def cp_ranks(self) -> Ranks:
        """First context-parallel group, ``(cp,)``."""
        return np.arange(self.cp) * self.tp

    def dp_ranks(self) -> Ranks:
        """Ranks of the first stage that hold the same dense weights, ``(dp * cp,)``."""
        return np.arange(self.dp * self.cp) * self.tp

    def ep_ranks(self) -> Ranks:
        """First expert-parallel group, ``(ep,)``."""
        return np.arange(self.ep) * (self.etp if self.folded else self.tp * self.cp)

    def etp_ranks(self) -> Ranks:
        """First group of ranks that share an expert's width, ``(etp,)``."""
        return np.arange(self.etp)

    def edp_ranks(self) -> Ranks:
        """Ranks of the first stage that hold the same experts, ``(edp,)``."""
        if self.folded:
            return np.arange(self.edp) * (self.ep * self.etp)
        outer = np.arange(self.edp // self.cp)[:, None] * (self.ep * self.cp * self.tp)
        return np.asarray((outer + np.arange(self.cp) * self.tp).ravel())

    def member_of(self) -> Ranks:
        """Place of each rank of a stage in its expert-parallel group, ``(stage_size,)``."""
        ranks = np.arange(self.stage_size)
        return ranks // (self.etp if self.folded else self.tp * self.cp) % self.ep

    def neighbours(self) -> Ranks:
        """A rank of the first stage and its successor in the second, ``(2,)``."""
        return np.array([0, self.stage_size % self.num_devices])


def check(plan: TrainPlan, model: Splittable, num_devices: int) -> None:
    """Make sure that a plan fits a model and a machine.

    Raises
    ------
    InputError
        With every contradiction: degrees that do not divide, more expert-parallel ranks than experts, more
        chunks than layers, more ranks than devices.
    """
    problems = [
        Problem(f"plan.{name}", f"got {getattr(plan, name)}; accepted: a whole number >= 1")
        for name in ("tp", "cp", "dp", "pp", "vpp", "ep", "etp")
        if getattr(plan, name) < 1
    ]
    if problems:
        raise InputError(problems)
    _check_stage(plan, model, problems)
    _check_model(plan, model, problems)
    if plan.num_devices > num_devices:
        need = f"got pp * dp * cp * tp = {plan.num_devices}; accepted: at most {num_devices} (the cluster)"
        problems.append(Problem("plan", need))
    if problems:
        raise InputError(problems)


def _check_stage(plan: TrainPlan, model: Splittable, problems: list[Problem]) -> None:
    experts = plan.ep * plan.etp
    if plan.stage_size % experts:
        accepted = f"etp * ep that divides the stage's {plan.stage_size} ranks (tp * cp * dp)"
        problems.append(Problem("plan.ep", f"got etp * ep = {experts}; accepted: {accepted}"))
    if not plan.folded and plan.etp != plan.tp and model.num_experts:
        problems.append(
            Problem("plan.etp", f"got {plan.etp}; accepted: {plan.tp} (tp) unless plan.folded is true")
        )
    elif not plan.folded and plan.dp % plan.ep:
        problems.append(
            Problem("plan.ep", f"got {plan.ep}; accepted: a divisor of dp = {plan.dp} unless plan.folded")
        )


def _check_model(plan: TrainPlan, model: Splittable, problems: list[Problem]) -> None:
    problems += sharing_problems(plan.pp, model)
    chunks = plan.pp * plan.vpp
    most = model.num_layers + 2
    if chunks > most:
        accepted = f"pp * vpp of at most {most} (layers, embedding and head)"
        problems.append(Problem("plan.vpp", f"got pp * vpp = {chunks}; accepted: {accepted}"))
    if model.num_experts % plan.ep or (plan.ep > 1 and not model.num_experts):
        accepted = f"a divisor of {model.num_experts} (experts)" if model.num_experts else "1 (dense model)"
        problems.append(Problem("plan.ep", f"got {plan.ep}; accepted: {accepted}"))
    for name, count in model.sharded_counts.items():
        if not shards(count, plan.tp, name):
            problems.append(Problem("plan.tp", f"got {plan.tp}; accepted: a divisor of {count} ({name})"))
    problems += [
        Problem("plan.etp", f"got {plan.etp}; accepted: a divisor of {width} (expert width)")
        for width in dict.fromkeys(model.expert_widths)
        if width % plan.etp
    ]
