"""Search over the plans of a training scenario: fastest that fit, each timed as ``moesim run`` would."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from moesim.errors import InputError
from moesim.parallel.train_plan import TrainPlan
from moesim.scenario.resolve import Resolved
from moesim.scenario.schema import Scenario
from moesim.scenario.training import Common, recompute_of, setup_of, train_plan
from moesim.scenario.training_errors import check_sections, located
from moesim.scenario.training_memory import ledger_of, memory_of
from moesim.scenario.training_rates import Rates
from moesim.scenario.training_schema import ScheduleSection
from moesim.training.bounds import LeastTimes
from moesim.training.framework import load_framework
from moesim.training.recompute import Recompute
from moesim.training.step import TrainSetup, TrainStep
from moesim.training.tuning import DEGREES, Candidate, Found, Progress, Space, Tuned, search

LARGEST_TP, LARGEST_PP = 8, 16
"""Largest degrees that are tried unless others are named."""

CHEAP = ("layernorm", "moe_act")
"""Recomputation that costs little: tried beside none, what the scenario asks for, and everything."""


@dataclass(eq=False)
class ScenarioEstimator:
    """What a plan takes in a scenario; everything that no plan changes stays as the scenario says.

    Attributes
    ----------
    scenario : Scenario
    common : Common
        Model and traffic; work of equal groups of ranks is priced once.
    """

    scenario: Scenario
    common: Common
    _least: dict[tuple[int, ...], LeastTimes] = field(default_factory=dict)
    _last: tuple[Candidate, TrainSetup] | None = None

    def peak_bytes(self, candidate: Candidate) -> float:
        """Bytes of the fullest rank. [bytes]"""
        ledger = ledger_of(self.setup(candidate), *memory_of(self.scenario))
        return float(ledger.need_bytes.max())

    def least_seconds(self, candidate: Candidate) -> float:
        """Bound of its step. [s]"""
        setup = self.setup(candidate)
        if candidate.group not in self._least:
            self._least[candidate.group] = LeastTimes(setup.work, setup.host, setup.mtp)
        return self._least[candidate.group].step_s(setup)

    def seconds(self, candidate: Candidate) -> float:
        """Its step, without calibration errors. [s]"""
        return float(TrainStep(self.setup(candidate)).run().makespan_s[0])

    def setup(self, candidate: Candidate) -> TrainSetup:
        """Everything that a candidate's step depends on."""
        if self._last is None or replace(self._last[0], recompute=candidate.recompute) != candidate:
            changed = under(self.scenario, candidate)
            framework = load_framework(self.scenario.training.framework)
            self._last = candidate, setup_of(changed, self.common, framework)
        return replace(self._last[1], recompute=candidate.recompute)


def under(scenario: Scenario, candidate: Candidate) -> Scenario:
    """The scenario with a candidate's plan, microbatch, schedule and recomputation."""
    plan, section = candidate.plan, scenario.training
    degrees = {name: getattr(plan, name) for name in DEGREES}
    own = section.schedule
    schedule = own if own.policy == candidate.schedule else ScheduleSection(policy=candidate.schedule)
    kept = plan == _own_plan(scenario)
    changed = {
        "micro_batch_size": candidate.micro_batch,
        "schedule": schedule,
        "recompute": _names(candidate.recompute),
        "recompute_layers": candidate.recompute.num_layers if candidate.recompute.method == "block" else None,
    }
    return scenario.model_copy(
        update={
            # sizes of parts that were given belong to the plan they were given with
            "plan": scenario.plan.model_copy(update=degrees | ({} if kept else {"layers": None})),
            "training": section.model_copy(update=changed),
        }
    )


def assignments(candidate: Candidate, scenario: Scenario) -> list[str]:
    """``--set`` values that make a scenario run this candidate."""
    plan, own = candidate.plan, scenario.plan
    values = {f"plan.{name}": getattr(plan, name) for name in DEGREES}
    if own.dp is None:
        del values["plan.dp"]  # fills the devices
    if own.layers is not None and plan != _own_plan(scenario):
        values["plan.layers"] = "null"
    values |= {
        "training.micro_batch_size": candidate.micro_batch,
        "training.schedule.policy": candidate.schedule,
        "training.recompute": f"[{','.join(_names(candidate.recompute))}]",
    }
    return [f"{path}={value}" for path, value in values.items()]


def own_candidate(scenario: Scenario) -> Candidate:
    """What the scenario itself asks for."""
    plan, section = _own_plan(scenario), scenario.training
    count = section.global_batch_size // (section.micro_batch_size * plan.dp)
    return Candidate(plan, section.micro_batch_size, count, section.schedule.policy, recompute_of(section))


def default_space(scenario: Scenario, common: Common) -> Space:
    """Powers of two that a model and machine of this size make one try, beside what the scenario asks for."""
    own, model, cluster = own_candidate(scenario), common.model, scenario.cluster
    devices, section = own.plan.num_devices, scenario.training
    return Space(
        num_devices=devices,
        global_batch=section.global_batch_size,
        tp=_powers(min(LARGEST_TP, cluster.devices_per_domain), own.plan.tp),
        cp=(own.plan.cp,),
        pp=_powers(min(LARGEST_PP, devices, model.num_layers), own.plan.pp),
        vpp=_powers(4, own.plan.vpp),
        ep=_powers(min(model.num_experts, devices), own.plan.ep) if model.num_experts else (1,),
        etp=(own.plan.etp,),
        micro_batch=_powers(4, own.micro_batch),
        schedules=tuple(dict.fromkeys(("1f1b", "interleaved", own.schedule))),
        recompute=_policies(own.recompute),
    )


def search_plans(
    scenario: Scenario,
    common: Common,
    space: Space,
    *,
    keep: int = 10,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Tuned:
    """Fastest plans of a space for a scenario.

    Raises
    ------
    InputError, InfeasibleError
        As :func:`~moesim.training.tuning.search`.
    """
    capacity, _ = memory_of(scenario)
    estimator = ScenarioEstimator(scenario, common)
    return search(
        space, common.model, estimator, capacity_bytes=capacity, keep=keep, jobs=jobs, progress=progress
    )


def common_of(resolved: Resolved) -> Common:
    """What the plans of a training scenario share.

    Raises
    ------
    InputError
        Another question, or routing that does not go with the model.
    """
    question = resolved.scenario.question
    if question != "train_step":
        where = resolved.tree.where(("question",))
        raise InputError.at("question", question, "train_step: only training has such plans", where=where)
    with located(resolved):
        check_sections(resolved)
        return Common.of(resolved)


def rows_of(tuned: Tuned, scenario: Scenario, common: Common) -> list[dict[str, Any]]:
    """Best plans as a table."""
    return [row_of(found, scenario, common) for found in tuned.best]


def row_of(found: Found, scenario: Scenario, common: Common) -> dict[str, Any]:
    """A plan as a row of a table, with rates and what to set."""
    sets = {"set": assignments(found.candidate, scenario)}
    return found.row() | _rates(found.seconds, scenario, common) | sets


def own_row(scenario: Scenario, common: Common) -> dict[str, Any] | None:
    """The scenario's own plan as such a row, whether it fits or not; None where it cannot run."""
    try:
        own, estimator = own_candidate(scenario), ScenarioEstimator(scenario, common)
        found = Found(own, estimator.peak_bytes(own), estimator.seconds(own))
    except InputError:
        return None
    return row_of(found, scenario, common)


def _rates(seconds: float, scenario: Scenario, common: Common) -> dict[str, float]:
    rates = Rates.of(scenario, common.model, own_candidate(scenario).plan.num_devices)
    return {
        "tokens_per_s_per_device": rates.tokens_per_s_per_device(seconds),
        "mfu_fraction": rates.mfu_fraction(seconds),
    }


def _own_plan(scenario: Scenario) -> TrainPlan:
    return train_plan(scenario.plan, scenario.cluster)


def _names(recompute: Recompute) -> tuple[str, ...]:
    return ("full",) if recompute.granularity == "full" else recompute.modules


def _powers(largest: int, own: int) -> tuple[int, ...]:
    """Powers of two up to ``largest``, and what the scenario asks for."""
    return tuple(sorted({1 << i for i in range(largest.bit_length()) if 1 << i <= largest} | {own}))


def _policies(own: Recompute) -> tuple[Recompute, ...]:
    """Nothing, what costs little, what the scenario asks for, everything."""
    cheap = Recompute("selective", CHEAP)
    return tuple(dict.fromkeys((Recompute(), cheap, own, Recompute("full"))))
