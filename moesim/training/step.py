"""One training step: passes of every chunk, strung together by the pipeline's schedule."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from moesim.engine.durations import error_factor
from moesim.engine.program import Program
from moesim.evidence import Estimate, Grade, draw_errors
from moesim.metrics.breakdown import Share
from moesim.model.spec import ModelSpec
from moesim.training.blocks import LaunchCost
from moesim.training.chunks import ChunkTimes, Errors, Segments
from moesim.training.crowd import overlapped_s
from moesim.training.gradients import StateTimes, state_times
from moesim.training.layout import Layout, PartParameters, part_parameters
from moesim.training.pipeline import (
    PassTimes,
    PipelineRun,
    RecordedPipeline,
    record_pipeline,
    simulate_pipeline,
)
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import FORWARDS, Geometry, Pass, Schedule
from moesim.training.states import States
from moesim.training.work import LayerWork

REPLICAS = 4
"""Most replicas that are simulated beside each other: more hardly change the slowest one's mean."""


@dataclass(frozen=True)
class TrainSetup:
    """Everything that a step depends on.

    Attributes
    ----------
    work : LayerWork
        Model, plan, formats, microbatch, costs, links and routing.
    layout : Layout
        Layers of each part, as many as the schedule cuts the model into.
    schedule : Schedule
        Order of the passes.
    num_microbatches : int
        Of each replica. [-]
    recompute : Recompute
        What the backward pass runs again.
    host : LaunchCost
        Launch costs.
    states : States
        How weights, gradients and optimizer states are kept.
    overlap_reduce, overlap_gather : bool
        Gradients are reduced under the backward passes, parameters gathered under the forward ones.
    mtp : bool
        Multi-token prediction modules are trained too.
    """

    work: LayerWork
    layout: Layout
    schedule: Schedule
    num_microbatches: int
    recompute: Recompute
    host: LaunchCost
    states: States = States()
    overlap_reduce: bool = True
    overlap_gather: bool = True
    mtp: bool = False

    @property
    def model(self) -> ModelSpec:
        """The network."""
        return self.work.model

    @property
    def geometry(self) -> Geometry:
        """Stages, microbatches and chunks."""
        plan = self.work.plan
        return Geometry(plan.pp, self.num_microbatches, plan.vpp)


@dataclass
class TrainStep:
    """Times of a step; passes of equal chunks are simulated once."""

    setup: TrainSetup
    _programs: dict[tuple[object, ...], Program] = field(default_factory=dict)

    @cached_property
    def chunks(self) -> ChunkTimes:
        """Passes of any run of layers."""
        return ChunkTimes(self.setup.work, self.setup.recompute, self.setup.host)

    @cached_property
    def parts(self) -> list[Segments]:
        """Items of each part of the model, in order."""
        last = len(self.setup.layout) - 1
        return [
            self.chunks.segments(layers, first=part == 0, last=part == last, mtp=self.setup.mtp)
            for part, layers in enumerate(self.setup.layout)
        ]

    @cached_property
    def parameters(self) -> list[PartParameters]:
        """Parameters of one rank of each part."""
        setup, last = self.setup, len(self.setup.layout) - 1
        return [
            part_parameters(
                setup.model, setup.work.plan, layers, first=part == 0, last=part == last, mtp=setup.mtp
            )
            for part, layers in enumerate(setup.layout)
        ]

    @cached_property
    def part_of(self) -> NDArray[np.int64]:
        """Part that each chunk of each stage holds, ``(stage, chunk)``."""
        geometry, schedule = self.setup.geometry, self.setup.schedule
        return np.array(
            [
                [schedule.part_of(stage, chunk, geometry) for chunk in range(geometry.num_chunks)]
                for stage in range(geometry.num_stages)
            ]
        )

    def seconds_by_operation(self, stage: int) -> list[Share]:
        """Seconds of a stage's passes by operation, along each pass's critical path; longest first. [s]"""
        counts = Counter(
            (task.kind, task.chunk, task.other_chunk)
            for task in self.setup.schedule.orders(self.setup.geometry)[stage]
        )
        totals: dict[tuple[str, str, Grade], Share] = {}
        for (kind, chunk, other), count in counts.items():
            behind = int(self.part_of[stage, other]) if kind is Pass.PAIR else None
            program = self._program(int(self.part_of[stage, chunk]), kind, behind)
            for share in self.chunks.shares(program):
                key = (share.name, share.kind, share.evidence)
                before = totals.get(key)
                seconds = share.seconds * count + (before.seconds if before else 0.0)
                sigma = max(share.sigma, before.sigma if before else 0.0)
                totals[key] = replace(share, seconds=seconds, sigma=sigma)
        return sorted(totals.values(), key=lambda share: (-share.seconds, share.name))

    def families(self) -> tuple[str, ...]:
        """Families of operations whose errors matter."""
        parts = range(len(self.parts))
        own = {f for part in parts for kind in self._kinds() for f in self._program(part, kind).families()}
        states = {
            e.family
            for t in self._states
            for e in (*t.reduce, *t.gather, *t.reduce_each, *t.gather_each, t.update)
        }
        return tuple(sorted(own | states | {self.setup.work.boundary().family}))

    def run(self, errors: Errors | None = None) -> PipelineRun:
        """The pipeline under drawn calibration errors, ``{family: (sample,)}``, or without any."""
        setup = self.setup
        times = self.pass_times(errors) if errors else self._nominal_times
        return simulate_pipeline(setup.schedule, setup.geometry, times)

    def record(self) -> RecordedPipeline:
        """The nominal step of the first replica task by task, for pictures and timelines."""
        setup, times = self.setup, self._nominal_times
        first = replace(times, seconds={kind: array[:, :1] for kind, array in times.seconds.items()})
        return record_pipeline(setup.schedule, setup.geometry, first, grade="fitted")

    def draws(self, num_samples: int, seed: int) -> Errors:
        """Calibration errors of every family that matters."""
        return draw_errors(self.families(), num_samples, seed)

    @cached_property
    def _nominal_times(self) -> PassTimes:
        return self.pass_times()

    def pass_times(self, errors: Errors | None = None) -> PassTimes:
        """Seconds of every pass, ``(sample, replica, stage, chunk, microbatch)``, and of the states."""
        setup = self.setup
        states = self._states

        def summed(of: Callable[[StateTimes], Iterable[Estimate]]) -> NDArray[np.float64]:
            """Seconds of each part, ``(part, sample)``."""
            return np.array([sum(_sampled(e, errors) for e in of(t)) + 0.0 * _ones(errors) for t in states])

        gather_each, reduce_each = summed(lambda t: t.gather_each), summed(lambda t: t.reduce_each)
        seconds = {}
        for kind in self._kinds():
            fetched = gather_each if kind in FORWARDS else gather_each + reduce_each
            if kind is Pass.PAIR:
                fetched = 2 * gather_each + reduce_each
            seconds[kind] = self._scheduled(kind, self._with_states(kind, errors, fetched))
        gather_s, reduce_s = summed(lambda t: t.gather), summed(lambda t: t.reduce)
        update_s = summed(lambda t: (t.update,))
        return PassTimes(
            seconds=seconds,
            send_s=float(setup.work.boundary().seconds),
            gather_s=np.moveaxis(gather_s[self.part_of], -1, 0),
            reduce_s=np.moveaxis(reduce_s[self.part_of], -1, 0),
            optimizer_s=np.moveaxis(update_s[self.part_of].sum(axis=1), -1, 0),
            overlap_gather=setup.overlap_gather,
            overlap_reduce=setup.overlap_reduce,
        )

    def _with_states(
        self, kind: Pass, errors: Errors | None, fetched: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Passes that gather sharded weights or reduce sharded gradients layer by layer, beside their work.

        ``fetched`` is ``(part, sample)``; the answer ``(stage, chunk, other chunk, sample, draw)``.
        """
        setup, passes = self.setup, self._by_chunk(kind, errors)
        beside = fetched[self.part_of][:, :, np.newaxis, :, np.newaxis]
        if not fetched.any() or not (setup.overlap_gather and setup.overlap_reduce):
            return passes + beside
        crowded = self._by_chunk(kind, errors, crowded=True)
        lost = self._lost(kind)[:, :, :, np.newaxis, np.newaxis]
        both = overlapped_s(passes, crowded, lost, beside)
        # of the first layer's weights, and of the last layer's work or gradients, nothing is hidden
        segments = np.array([len(part) for part in self.parts])[self.part_of]
        shown = np.minimum(passes, beside) / segments[:, :, np.newaxis, np.newaxis, np.newaxis]
        return np.asarray(both + shown)

    def _kinds(self) -> list[Pass]:
        schedule = self.setup.schedule
        backward = (
            [Pass.INPUT_GRADIENT, Pass.WEIGHT_GRADIENT] if schedule.splits_backward else [Pass.BACKWARD]
        )
        both = [Pass.BACKWARD] if schedule.pairs and schedule.splits_backward else []
        return [Pass.FORWARD, *backward, *both, *([Pass.PAIR] if schedule.pairs else [])]

    @cached_property
    def _states(self) -> list[StateTimes]:
        work, states = self.setup.work, self.setup.states
        kernels = work.cost.kernels
        return [
            state_times(p, work.plan, states, kernels, work.fabric, work.num_units) for p in self.parameters
        ]

    def _program(self, part: int, kind: Pass, other: int | None = None, *, crowded: bool = False) -> Program:
        """Program of a pass of a part, alone or beside its states' collectives; equal ones are shared."""
        items, behind = self._items(part, kind, other)
        crowd = self._states[part].crowd if crowded else None
        key = (kind, _identity(items), _identity(behind), crowd)
        if key not in self._programs:
            self._programs[key] = self.chunks.program(items, kind, behind, crowd)
        return self._programs[key]

    def _items(self, part: int, kind: Pass, other: int | None) -> tuple[Segments, Segments]:
        """Items of a pass, and those of the backward pass that a pair has beside it."""
        items = self.parts[part]
        return items, self.parts[other] if other is not None else items if kind is Pass.PAIR else []

    def _lost(self, kind: Pass) -> NDArray[np.float64]:
        """What states' collectives lose to each pass's exchanges, ``(stage, chunk, other chunk)``. [s]"""

        def lost_s(part: int, other: int | None) -> float:
            crowd = self._states[part].crowd
            items, behind = self._items(part, kind, other)
            return 0.0 if crowd is None else self.chunks.lost_s(items, kind, behind, crowd)

        return np.array(
            [
                [
                    [lost_s(part, other) for other in (parts if kind is Pass.PAIR else [None])]
                    for part in parts
                ]
                for parts in self.part_of.tolist()
            ]
        )

    def _by_chunk(self, kind: Pass, errors: Errors | None, *, crowded: bool = False) -> NDArray[np.float64]:
        """Seconds of a pass of each chunk of each stage, ``(stage, chunk, other chunk, sample, draw)``.

        Only pairs depend on the chunk of the backward pass beside; otherwise that axis has length 1.
        """
        known: dict[tuple[int, bytes], NDArray[np.float64]] = {}

        def seconds(stage: int, part: int, other: int | None) -> NDArray[np.float64]:
            program, speed = self._program(part, kind, other, crowded=crowded), self._speed_of(stage)
            key = (id(program), speed.tobytes())
            if key not in known:
                slow = program if (speed == 1.0).all() else self.chunks.slowed(program, speed)
                known[key] = self.chunks.seconds(slow, errors)
            return known[key]

        return np.array(
            [
                [
                    [seconds(stage, part, other) for other in (parts if kind is Pass.PAIR else [None])]
                    for part in parts
                ]
                for stage, parts in enumerate(self.part_of.tolist())
            ]
        )

    def _speed_of(self, stage: int) -> NDArray[np.float64]:
        """Rate of each member of the stage's slowest group over a sound device's, ``(member,)``."""
        work = self.setup.work
        plan, speed = work.plan, work.fabric.device_speed
        ranks = speed[stage * plan.stage_size : (stage + 1) * plan.stage_size]
        if (ranks == 1.0).all():
            return np.ones(max(plan.ep, 1))
        members = np.asarray(plan.member_of())
        slowest = np.ones(plan.ep)
        np.minimum.at(slowest, members, ranks)
        return slowest

    def _scheduled(self, kind: Pass, by_chunk: NDArray[np.float64]) -> NDArray[np.float64]:
        """``(stage, chunk, other chunk, sample, draw)`` as the pipeline takes a kind of pass."""
        drawn = np.moveaxis(by_chunk[..., self._draw_of], (3, 4), (0, 1))
        return drawn if kind is Pass.PAIR else drawn[:, :, :, :, 0]

    @cached_property
    def _draw_of(self) -> NDArray[np.int64]:
        """Draw of routing of each replica's microbatch, ``(replica, microbatch)``; all are used alike."""
        work = self.setup.work
        replicas = min(work.plan.edp, REPLICAS) if work.num_draws > 1 else 1
        count = self.setup.num_microbatches
        return np.asarray(
            (np.arange(count) + np.arange(replicas)[:, None] * (count // replicas + 1)) % work.num_draws
        )


def balanced_setup(setup: TrainSetup) -> TrainSetup:
    """The same step with every expert alike: what imbalance costs is the difference."""
    shares = np.full_like(setup.work.shares[:1], 1.0 / max(setup.work.shares.shape[-1], 1))
    return replace(setup, work=setup.work.with_shares(shares))


def _identity(segments: Segments) -> tuple[int, ...]:
    return tuple(id(item) for segment in segments for item in segment)


def _ones(errors: Errors | None) -> NDArray[np.float64]:
    return np.ones(len(next(iter(errors.values()))) if errors else 1)


def _sampled(estimate: Estimate, errors: Errors | None) -> NDArray[np.float64]:
    """Seconds of an estimate in each sample, ``(sample,)``."""
    factor = error_factor(estimate.family, estimate.sigma, errors)
    return np.asarray(estimate.seconds) * (_ones(errors) if factor is None else factor)
