"""Search for the fastest training plan that fits: cheap exclusions first, then time for what is left.

What a plan takes is the caller's business (:class:`Estimator`); the search knows only which plans are worth
asking for. The same question has the same answer, however many processes work on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any, Protocol, TypeAlias

from moesim.errors import InfeasibleError, InputError, MoesimError
from moesim.parallel.plan import Splittable
from moesim.parallel.train_plan import TrainPlan, check
from moesim.training.recompute import Recompute
from moesim.training.schedules.base import Geometry, schedules
from moesim.units import fmt_bytes

DEGREES = ("tp", "cp", "dp", "pp", "vpp", "ep", "etp")

Progress: TypeAlias = Callable[[str, int], None]

BATCH = 16
"""Candidates that are timed between two looks at the best; not a matter of how many processes there are."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan and what else is chosen with it.

    Attributes
    ----------
    plan : TrainPlan
        Degrees of parallelism.
    micro_batch : int
        Sequences of a microbatch. [-]
    num_microbatches : int
        Of each data-parallel replica in a step. [-]
    schedule : str
        Registered name.
    recompute : Recompute
        What the backward pass runs again.
    """

    plan: TrainPlan
    micro_batch: int
    num_microbatches: int
    schedule: str
    recompute: Recompute

    @property
    def geometry(self) -> Geometry:
        """Its pipeline."""
        return Geometry(self.plan.pp, self.num_microbatches, self.plan.vpp)

    @property
    def group(self) -> tuple[int, ...]:
        """What the work of one group of ranks depends on."""
        plan = self.plan
        return (plan.tp, plan.cp, plan.ep, plan.etp, self.micro_batch)


class Estimator(Protocol):
    """What a candidate takes; sent to other processes once, so it may keep what it has worked out.

    A candidate that it refuses with an ``InputError`` or ``InfeasibleError`` is left out and counted.
    """

    def peak_bytes(self, candidate: Candidate) -> float:
        """Bytes of the fullest rank; asked for every candidate, so it should be quick. [bytes]"""
        ...

    def least_seconds(self, candidate: Candidate) -> float:
        """What its step takes at least, quickly; 0 if nothing is known. [s]"""
        ...

    def seconds(self, candidate: Candidate) -> float:
        """Its step. [s]"""
        ...


@dataclass(frozen=True, slots=True)
class Space:
    """What is tried: every combination of the values that makes up a plan.

    Attributes
    ----------
    num_devices, global_batch : int
        All of the devices are used; sequences of a step. [-]
    tp, cp, pp, vpp, ep, etp, micro_batch : tuple of int
        Values of each.
    schedules : tuple of str
        Registered names.
    recompute : tuple of Recompute
        From the least work run again to the most: a heavier one is tried only where those before it do
        not fit, for it cannot be faster.
    """

    num_devices: int
    global_batch: int
    tp: tuple[int, ...] = (1, 2, 4, 8)
    cp: tuple[int, ...] = (1,)
    pp: tuple[int, ...] = (1, 2, 4, 8, 16)
    vpp: tuple[int, ...] = (1, 2, 4)
    ep: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    etp: tuple[int, ...] = (1,)
    micro_batch: tuple[int, ...] = (1, 2, 4)
    schedules: tuple[str, ...] = ("1f1b", "interleaved")
    recompute: tuple[Recompute, ...] = (Recompute(), Recompute("full"))


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate that fits, and what it takes. [bytes], [s]"""

    candidate: Candidate
    peak_bytes: float
    seconds: float

    def row(self) -> dict[str, Any]:
        """As a row of a table."""
        chosen = self.candidate
        return {name: getattr(chosen.plan, name) for name in DEGREES} | {
            "micro_batch": chosen.micro_batch,
            "num_microbatches": chosen.num_microbatches,
            "schedule": chosen.schedule,
            "recompute": str(chosen.recompute),
            "peak_bytes": self.peak_bytes,
            "step_s": self.seconds,
        }


@dataclass(frozen=True, slots=True)
class Sized:
    """Memory of a candidate, with the first recomputation that fits, and its least seconds. [bytes], [s]"""

    candidate: Candidate
    peak_bytes: float
    least_s: float
    fits: bool


@dataclass(frozen=True, slots=True)
class Tuned:
    """Outcome of a search.

    Attributes
    ----------
    best : tuple of Found
        Fastest first; equal ones in the order of the space.
    num_plans, num_sized, num_timed : int
        Combinations of the space, those whose memory was asked for, those whose step was.
    left_out : dict of str to int
        Why others were not timed, and how many, most frequent first.
    fits : tuple of Sized
        Everything that fits, least bound first.
    """

    best: tuple[Found, ...]
    num_plans: int
    num_sized: int
    num_timed: int
    left_out: dict[str, int]
    fits: tuple[Sized, ...] = ()

    def rows(self) -> list[dict[str, Any]]:
        """The best as a table."""
        return [found.row() for found in self.best]


def search(
    space: Space,
    model: Splittable,
    estimator: Estimator,
    *,
    capacity_bytes: float,
    keep: int = 10,
    jobs: int = 1,
    progress: Progress | None = None,
) -> Tuned:
    """Fastest plans of a space that fit.

    Candidates are timed in the order of their least seconds; once ``keep`` are known and the next cannot
    beat the last of them, the rest is left out.

    Parameters
    ----------
    space : Space
        What is tried.
    model : ModelSpec
        What plans are checked against.
    estimator : Estimator
        Picklable where ``jobs`` is above 1.
    capacity_bytes : float
        Of a device. [bytes]
    keep : int, default 10
        How many of the best are wanted.
    jobs : int, default 1
        Processes.
    progress : callable, optional
        Told what is done (``sized`` or ``timed``) and how many plans that was.

    Raises
    ------
    InputError
        If no combination makes up a plan of the model.
    InfeasibleError
        If none fits, with the least need.
    """
    left_out: Counter[str] = Counter()
    shapes = list(_shapes(space, model, left_out))
    num_plans = len(shapes) + left_out.total()
    if not shapes:
        raise InputError.at(
            "space", f"{num_plans} combinations", f"some that make up a plan: {_told(left_out)}"
        )
    with _mapper(estimator, jobs, progress) as mapped:
        size = partial(_size, recompute=space.recompute, capacity_bytes=capacity_bytes)
        sized = mapped("sized", size, shapes)
        left_out.update(result for result in sized if isinstance(result, str))
        fits = [result for result in sized if not isinstance(result, str) and result.fits]
        too_large = [result for result in sized if not isinstance(result, str) and not result.fits]
        left_out.update(["does not fit"] * len(too_large))
        if not fits:
            raise InfeasibleError(_none_fits(too_large, capacity_bytes, left_out))
        order = sorted(range(len(fits)), key=lambda i: (fits[i].least_s, i))
        found: list[tuple[float, int]] = []
        num_timed = 0
        for first in range(0, len(order), BATCH):
            batch = order[first : first + BATCH]
            if len(found) >= keep and fits[batch[0]].least_s >= found[keep - 1][0]:
                left_out["cannot be among the best"] += len(order) - first
                break
            num_timed += len(batch)
            times = mapped("timed", _time, [fits[i].candidate for i in batch])
            left_out.update(time for time in times if isinstance(time, str))
            found += [(time, i) for time, i in zip(times, batch, strict=True) if not isinstance(time, str)]
            found.sort()
    best = tuple(Found(fits[i].candidate, fits[i].peak_bytes, seconds) for seconds, i in found[:keep])
    return Tuned(
        best,
        num_plans,
        len(shapes),
        num_timed,
        dict(left_out.most_common()),
        tuple(fits[i] for i in order),
    )


def _shapes(space: Space, model: Splittable, left_out: Counter[str]) -> Iterator[Candidate]:
    """Combinations that make up a plan, with the lightest recomputation; why others do not is counted."""
    orders = {name: schedules.build(name) for name in space.schedules}
    of_plan = len(space.schedules)
    degrees = product(space.tp, space.cp, space.ep, space.etp, space.micro_batch, space.pp, space.vpp)
    for tp, cp, ep, etp, micro_batch, pp, vpp in degrees:
        if pp == 1 and vpp > 1:
            left_out["one stage needs no chunks"] += of_plan
            continue
        dp, rest = divmod(space.num_devices, tp * cp * pp)
        if rest or not dp:
            left_out["tp * cp * pp does not divide the devices"] += of_plan
            continue
        plan = TrainPlan(tp=tp, cp=cp, dp=dp, pp=pp, vpp=vpp, ep=ep, etp=etp)
        try:
            check(plan, model, space.num_devices)
        except InputError as error:
            left_out[f"{error.problems[0].field} does not divide or is too large"] += of_plan
            continue
        count, rest = divmod(space.global_batch, dp * micro_batch)
        if rest or not count:
            left_out["dp * micro_batch does not divide the global batch"] += of_plan
            continue
        for name, order in orders.items():
            candidate = Candidate(plan, micro_batch, count, name, space.recompute[0])
            if order.problems(candidate.geometry):
                left_out[f"schedule {name} cannot run so many stages, chunks and microbatches"] += 1
            else:
                yield candidate


def _size(
    estimator: Estimator, shape: Candidate, recompute: Sequence[Recompute], capacity_bytes: float
) -> Sized | str:
    """Memory of a shape, or why there is none."""
    try:
        least = None
        for policy in recompute:
            candidate = replace(shape, recompute=policy)
            need_bytes = estimator.peak_bytes(candidate)
            if need_bytes <= capacity_bytes:
                return Sized(candidate, need_bytes, estimator.least_seconds(candidate), fits=True)
            if least is None or need_bytes < least.peak_bytes:
                least = Sized(candidate, need_bytes, 0.0, fits=False)
    except (InputError, InfeasibleError) as error:
        return _reason(error)
    return least or "no recomputation to try"


def _time(estimator: Estimator, candidate: Candidate) -> float | str:
    """Seconds of a candidate, or why there are none."""
    try:
        return estimator.seconds(candidate)
    except (InputError, InfeasibleError) as error:
        return _reason(error)


def _reason(error: MoesimError) -> str:
    """Field of an input that is wrong, else the first line."""
    if isinstance(error, InputError) and error.problems and error.problems[0].field:
        return f"{error.problems[0].field} is not accepted"
    return str(error).splitlines()[0]


def _told(left_out: Counter[str]) -> str:
    return "; ".join(f"{count} times {reason}" for reason, count in left_out.most_common(5))


def _none_fits(too_large: Sequence[Sized], capacity_bytes: float, left_out: Counter[str]) -> str:
    if not too_large:
        return f"no plan can be estimated: {_told(left_out)}"
    least = min(too_large, key=lambda sized: sized.peak_bytes)
    chosen = least.candidate
    need = f"need at least {fmt_bytes(least.peak_bytes)}, have {fmt_bytes(capacity_bytes)}"
    which = f"{chosen.plan}, micro_batch {chosen.micro_batch}, recompute {chosen.recompute}"
    remedy = "try more devices, more stages, or states that are sharded further"
    return f"none of {len(too_large)} plans fits: {need} ({which}); {remedy}"


Mapped: TypeAlias = Callable[[str, Callable[..., Any], Sequence[Candidate]], list[Any]]
_installed: list[Estimator] = []


@contextmanager
def _mapper(estimator: Estimator, jobs: int, progress: Progress | None) -> Iterator[Mapped]:
    """Calls work on every candidate, in this process or in ``jobs`` others; results in the given order.

    Candidates with equal groups of ranks go to one process together, for they share most of their work.
    """
    tell = progress or (lambda what, count: None)
    if jobs <= 1:

        def alone(what: str, work: Callable[..., Any], candidates: Sequence[Candidate]) -> list[Any]:
            results = []
            for candidate in candidates:
                results.append(work(estimator, candidate))
                tell(what, 1)
            return results

        yield alone
        return
    # spawned, not forked: the same state on every platform
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_install, initargs=(estimator,)
    )

    def mapped(what: str, work: Callable[..., Any], candidates: Sequence[Candidate]) -> list[Any]:
        kin: dict[tuple[int, ...], list[int]] = {}
        for index, candidate in enumerate(candidates):
            kin.setdefault(candidate.group, []).append(index)
        results: list[Any] = [None] * len(candidates)
        groups = [[candidates[index] for index in own] for own in kin.values()]
        for own, found in zip(kin.values(), pool.map(partial(_call, work), groups), strict=True):
            for index, result in zip(own, found, strict=True):
                results[index] = result
            tell(what, len(own))
        return results

    with pool:
        yield mapped


def _install(estimator: Estimator) -> None:
    _installed.append(estimator)


def _call(work: Callable[..., Any], candidates: Sequence[Candidate]) -> list[Any]:
    """Work with the estimator of this process."""
    return [work(_installed[-1], candidate) for candidate in candidates]
