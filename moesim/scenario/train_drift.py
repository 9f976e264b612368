"""Training steps one after another while the experts' loads drift, and what answers to that are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.network.exchanges.base import Load, exchange
from moesim.network.traffic import Traffic
from moesim.placement import Placement
from moesim.scenario.resolve import Resolved
from moesim.scenario.schema import Scenario
from moesim.scenario.training import Common, setup_of, train_plan
from moesim.scenario.training_errors import located
from moesim.scenario.training_placing import in_order, placed
from moesim.scenario.training_routing import Windows
from moesim.training.framework import load_framework
from moesim.training.states import kept_bytes
from moesim.training.step import TrainSetup, TrainStep, balanced_setup

NOTHING, HELP = "none", "llep"
"""Answers beside the names of placement methods: homes stay in order; overloaded experts get helpers."""

LEAST_SHARE_RATIO = 0.02
"""Least share of an expert over the mean whose logarithm drifts: rarer ones were hardly seen at all."""


@dataclass(frozen=True)
class Drift:
    """How loads move, and how often homes answer.

    Attributes
    ----------
    steps : int
    fraction : float
        Of an expert's log load that is renewed from one step to the next; 0: loads stay, 1: every step is
        another draw. [-]
    every : int
        Steps between two placements. [-]
    """

    steps: int = 16
    fraction: float = 0.1
    every: int = 4


def drifted(windows: Windows, drift: Drift, seed: int) -> list[Windows]:
    """Windows of every step.

    The logarithm of each expert's mean load follows an autoregression whose innovations are the first loads
    under another order of the experts: hot experts move, the skew stays.
    """
    if windows.counts is None:
        return [windows] * drift.steps
    rng = rng_for(seed, "training/drift")
    mean = windows.counts.sum(axis=0).astype(np.float64)
    mean = np.maximum(mean, LEAST_SHARE_RATIO * mean.mean(axis=-1, keepdims=True))
    first = np.log(mean / mean.mean(axis=-1, keepdims=True))
    kept, found = 1.0 - drift.fraction, []
    now = first
    for _ in range(drift.steps):
        found.append(replace(windows, counts=windows.counts * np.exp(now - first)))
        new = rng.permuted(first, axis=-1)
        now = kept * now + np.sqrt(1.0 - kept**2) * new
    return found


def run_drift(
    resolved: Resolved,
    common: Common,
    drift: Drift,
    answers: Sequence[str],
    progress: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """Steps of a scenario under each answer, and with every expert alike; one row an answer.

    Raises
    ------
    InputError
        No experts to move, an unknown answer, or numbers out of range.
    """
    scenario = resolved.scenario
    with located(resolved):
        _check(scenario, common, drift)
        setup = _setup(scenario, common, common.windows)
    windows = drifted(common.windows, drift, scenario.seed)
    rows = []
    for answer in answers:
        run = _Run(scenario, common, answer, drift)
        steps = []
        for number, now in enumerate(windows):
            steps.append(run.step(number, now, windows[number - 1]))
            progress(f"{answer}, step {number + 1}")
        rows.append(_row(answer, steps))
    even_s = float(TrainStep(balanced_setup(setup)).run().makespan_s[0])
    even = [{"step_s": even_s, "move_s": 0.0, "moved_experts": 0, "imbalance_ratio": 1.0}] * drift.steps
    return [*rows, _row("every expert alike", even)]


@dataclass
class _Run:
    """One answer over all steps."""

    scenario: Scenario
    common: Common
    answer: str
    drift: Drift
    homes: Placement | None = None

    def step(self, number: int, now: Windows, before: Windows) -> dict[str, Any]:
        """Seconds of a step, and of moving experts before it."""
        scenario, moved, move_s = self.scenario, 0, 0.0
        if self.answer == HELP:
            own = scenario.training.split
            helped = own if own.policy == HELP else own.model_copy(update={"policy": HELP})
            section = scenario.training.model_copy(update={"split": helped})
            scenario = scenario.model_copy(update={"training": section})
        elif self.answer != NOTHING and number and number % self.drift.every == 0:
            moved, move_s = self._placed_anew(before)
        setup = _setup(scenario, self.common, replace(now, homes=self.homes))
        moe = next(layer.moe for layer in setup.model.layers if layer.moe is not None)
        return {
            "step_s": float(TrainStep(setup).run().makespan_s[0]) + move_s,
            "move_s": move_s,
            "moved_experts": moved,
            "imbalance_ratio": float(setup.work.load(moe).overload.mean()),
        }

    def _placed_anew(self, seen: Windows) -> tuple[int, float]:
        """Homes for the loads of the step before; experts that move, and seconds. [-], [s]"""
        assert seen.counts is not None  # checked
        plan = train_plan(self.scenario.plan, self.scenario.cluster)
        loads = seen.counts.sum(axis=0)
        old = self.homes or in_order(len(loads), loads.shape[1], plan.ep)
        own = self.scenario.placement
        params = own.params if own.method == self.answer else {}
        self.homes = placed(self.answer, params, loads, self.scenario, plan, old)
        was, now = (one.rank_share.argmax(axis=-1) for one in (old, self.homes))
        setup = _setup(self.scenario, self.common, seen)
        return int((was != now).sum()), move_seconds(setup, was, now)


def move_seconds(setup: TrainSetup, was: NDArray[np.int64], now: NDArray[np.int64]) -> float:
    """Weights and optimizer states of experts that change homes, ``(layer, expert)``, sent before a step.

    Stages work at the same time, each on its own layers; every replica sends what it keeps. [s]
    """
    work, model = setup.work, setup.model
    plan = work.plan
    ranks = np.arange(plan.ep)
    pairs = (was[..., None] == ranks)[..., :, None] & (now[..., None] == ranks)[..., None, :]
    moved = (pairs & ~np.eye(plan.ep, dtype=np.bool_)).sum(axis=1).astype(np.float64)
    domain = np.asarray(work.fabric.domain[plan.ep_ranks()])
    near = domain[:, None] == domain
    moe = next(layer.moe for layer in model.layers if layer.moe is not None)
    kept = kept_bytes(setup.states, plan.edp, work.dtypes.experts)
    fabric = replace(work.fabric, communication=replace(work.fabric.communication, exchange="pairwise"))
    load = Load(
        phase="dispatch",
        ports=Traffic(moved * near, moved * ~near).ports(),
        row_bytes=moe.expert_parameters(model.hidden_size) * (kept.weights + kept.optimizer) / plan.etp,
        ranks=plan.ep_ranks(),
        tokens_per_rank=work.local_tokens,
        num_experts=moe.num_experts,
        deduplicate="expert",
    )
    seconds = np.asarray(exchange(load, fabric)[1].seconds) * moved.any(axis=(1, 2))
    row_of = {layer: row for row, layer in enumerate(model.moe_layers)}
    parts = [sum(float(seconds[row_of[i]]) for i in part if i in row_of) for part in setup.layout]
    stages = [
        sum(parts[setup.schedule.part_of(s, c, setup.geometry)] for c in range(setup.geometry.num_chunks))
        for s in range(setup.geometry.num_stages)
    ]
    return max(stages)


def _setup(scenario: Scenario, common: Common, windows: Windows) -> TrainSetup:
    framework = load_framework(scenario.training.framework)
    return setup_of(scenario, Common(common.model, windows), framework)


def _row(answer: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    seconds = np.array([step["step_s"] for step in steps])
    return {
        "answer": answer,
        "mean_step_s": float(seconds.mean()),
        "worst_step_s": float(seconds.max()),
        "mean_imbalance_ratio": float(np.mean([step["imbalance_ratio"] for step in steps])),
        "moved_experts": int(sum(step["moved_experts"] for step in steps)),
        "move_s": float(sum(step["move_s"] for step in steps)),
        "steps": steps,
    }


def _check(scenario: Scenario, common: Common, drift: Drift) -> None:
    if common.windows.counts is None:
        accepted = "a trace or a generator of uneven loads: even ones do not drift"
        raise InputError.at("routing", "balanced" if scenario.routing else None, accepted)
    ep = scenario.plan.ep or 1
    if ep == 1:
        raise InputError.at("plan.ep", ep, "at least 2: experts on one rank have no other home")
    for name, value, low, high in (
        ("--steps", drift.steps, 1, 1000),
        ("--drift", drift.fraction, 0.0, 1.0),
        ("--every", drift.every, 1, 1000),
    ):
        if not low <= value <= high:
            raise InputError.at(name, value, f"{low} to {high}")
