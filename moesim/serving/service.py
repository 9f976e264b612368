"""A service: requests find ranks of instances, instances work, and things happen to instances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from moesim.engine.agenda import Agenda
from moesim.errors import InfeasibleError
from moesim.evidence import rng_for
from moesim.serving.engine import Engine
from moesim.serving.expert_steps import ExpertsOf, StepExperts
from moesim.serving.holding import HoldingInstance
from moesim.serving.instance import ENDS, ROUTES, Instance
from moesim.serving.iterations import Iterations
from moesim.serving.live import NEVER, Live
from moesim.serving.measures import Measures
from moesim.serving.policies import Router
from moesim.serving.rank import FOREVER, Rank
from moesim.serving.workload import Workload
from moesim.units import PS_PER_S

Role = Literal["both", "prefill", "decode"]


@dataclass(frozen=True, slots=True)
class InstanceSpec:
    """One instance of the service.

    Attributes
    ----------
    engine, iterations, num_ranks
        What it is and how long its iterations take.
    role : str
        ``prefill`` instances hand a request over after its first token, ``decode`` instances take it.
    starts : bool
        There from the beginning; otherwise an ``up`` change brings it.
    experts : callable, optional
        Makes its :class:`~moesim.serving.expert_steps.StepExperts`.
    """

    engine: Engine
    iterations: Iterations
    num_ranks: int = 1
    role: Role = "both"
    starts: bool = True
    experts: ExpertsOf | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """Something that happens to an instance.

    Attributes
    ----------
    at_s : float
        When. [s]
    kind : str
        ``down``: it dies, its requests start again elsewhere; ``up``: it takes requests (again);
        ``drain``: it takes no more requests and finishes those it has; ``slow``: its iterations take
        ``factor`` times as long from the next one on.
    instance : int
        Which.
    """

    at_s: float
    kind: Literal["down", "up", "drain", "slow"]
    instance: int
    factor: float = 1.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """Moving the KV of a request from a prefill to a decode instance.

    Attributes
    ----------
    latency_s : float
        Before the first byte. [s]
    s_per_token : float
        Bytes of a token over the bandwidth between two instances. [s]
    """

    latency_s: float = 0.0
    s_per_token: float = 0.0


class InstanceType(Protocol):
    """How instances are made: lazy ones, or the oracle's."""

    def __call__(
        self,
        index: int,
        engine: Engine,
        iterations: Iterations,
        num_ranks: int,
        agenda: Agenda,
        measures: Measures,
        owner: Service,
        experts: StepExperts | None = None,
    ) -> Instance:
        """One instance."""
        ...


def _kind(spec: InstanceSpec) -> InstanceType:
    return HoldingInstance if spec.engine.hold else Instance


class Service:
    """One run of a service; :meth:`run` plays it to its end.

    Parameters
    ----------
    workload : Workload
    instances : sequence of InstanceSpec
    router : Router
        Chooses among the ranks of the instances of a role.
    changes : sequence of Change
    transfer : Transfer
        Between prefill and decode instances, one request at a time on either side.
    seed : int
        Of the routers' draws.
    make : InstanceType
        Another than :class:`Instance` that behaves alike.
    progress : callable, optional
        Called with the number of finished requests now and then.

    Raises
    ------
    InfeasibleError
        A request could never be admitted, or no instance of a needed role is there.
    """

    def __init__(
        self,
        workload: Workload,
        instances: Sequence[InstanceSpec],
        router: Router,
        *,
        changes: Sequence[Change] = (),
        transfer: Transfer = Transfer(),  # noqa: B008 - frozen
        seed: int = 0,
        make: InstanceType | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.workload, self.specs, self.router = workload, tuple(instances), router
        self.agenda = Agenda()
        self.measures = Measures(workload.num_requests, len(self.specs))
        self.measures.delivery_tokens = self.specs[-1].engine.delivery_tokens
        clock = (self.agenda, self.measures, self)
        self.instances = [
            (make or _kind(s))(
                i, s.engine, s.iterations, s.num_ranks, *clock, s.experts() if s.experts else None
            )
            for i, s in enumerate(self.specs)
        ]
        self._open = [spec.starts for spec in self.specs]
        self._transfer, self._progress = transfer, progress
        self._link_free_ps = [0] * len(self.specs)
        self._draws = rng_for(seed, "serving/router").random(workload.num_requests).tolist()
        self._routed = 0
        self._arrived: list[Live] = []
        self._homeless: list[Live] = []
        self._leaving: dict[Live, int] = {}
        self._num_finished = 0
        self._inputs: list[int] = workload.input_tokens.tolist()
        self._outputs: list[int] = workload.output_tokens.tolist()
        self._keeps = workload.keeps.tolist()
        self._next_turn = {int(w): i for i, w in enumerate(workload.after.tolist()) if w != NEVER}
        self._refuse()
        self._lists: dict[bool, list[tuple[int, int]]] = {}
        self._targets: dict[bool, list[Rank]] = {}
        self._reopened()
        roots = np.flatnonzero(workload.after == NEVER)
        if workload.clients is None:
            roots = roots[np.argsort(workload.arrival_ps[roots], kind="stable")]
        self._roots: list[int] = roots.tolist()
        self._root_ps: list[int] = workload.arrival_ps[roots].tolist()
        self._next_root = 0
        for change in changes:
            self.agenda.call(self._change, delay_ps=round(change.at_s * PS_PER_S), phase=ROUTES, value=change)

    def run(self) -> Measures:
        """Play until the last request has finished.

        Raises
        ------
        InfeasibleError
            Requests are left without an instance that would take them.
        """
        clients = self.workload.clients
        if clients is None:
            self._arrive_next()
        else:
            for request in self._roots[:clients]:
                self._arrive_at(request, int(self.workload.arrival_ps[request]))
            self._next_root = min(clients, len(self._roots))
        self.agenda.run()
        left = self.workload.num_requests - self._num_finished
        if left:
            message = (
                f"{left} of {self.workload.num_requests} requests have no instance left that would take them"
            )
            raise InfeasibleError(message)
        if self.measures.output_tokens != int(self.workload.output_tokens.sum()):
            raise RuntimeError("tokens were lost or made up: defect of the request clock")
        return self.measures

    def next_arrival_ps(self) -> int:
        """When the next request of an open loop arrives. [ps]"""
        if self.workload.clients is not None or self._next_root >= len(self._roots):
            return FOREVER
        return self._root_ps[self._next_root]

    def input_tokens(self, request: int) -> int:
        """Prompt of a request as it arrived. [tokens]"""
        return self._inputs[request]

    def finished(self, live: Live, instance: int) -> None:
        """A request is done: its next turn, or the client's next request, follows."""
        self._num_finished += 1
        if self._progress and self._num_finished % 256 == 0:
            self._progress(self._num_finished)
        now = self.agenda.now_ps
        turn = self._next_turn.get(live.request)
        if turn is not None:
            self._arrive_at(turn, now + int(self.workload.arrival_ps[turn]))
        elif self.workload.clients is not None and self._next_root < len(self._roots):
            self._arrive_at(self._roots[self._next_root], now)
            self._next_root += 1

    def prefilled(self, live: Live, instance: int) -> bool:
        """Hand a request with its first token over to a decode instance, where there are any."""
        if self.specs[instance].role != "prefill":
            return False
        self._leaving[live] = instance
        self._to_route(live)
        return True

    def _refuse(self) -> None:
        """A request that no rank could ever hold is told before anything runs."""
        roles = {spec.role for spec in self.specs}
        if roles & {"prefill", "decode"} and not {"prefill", "decode"} <= roles:
            raise InfeasibleError("prefill and decode instances need each other; accepted: some of both")
        pairs = np.stack([self.workload.input_tokens, self.workload.output_tokens])
        for engine in dict.fromkeys(spec.engine for spec in self.specs):
            order = np.argsort(-pairs.sum(axis=0), kind="stable")[:1]
            for request in order.tolist():
                why = engine.refusal(self._inputs[request], self._outputs[request])
                if why:
                    message = f"request {request} can never be admitted: it {why}"
                    raise InfeasibleError(message)

    def _arrive_next(self) -> None:
        if self._next_root < len(self._roots):
            delay = self.next_arrival_ps() - self.agenda.now_ps
            self.agenda.call(self._arrive, delay_ps=delay, phase=ENDS)

    def _arrive(self, _: object) -> None:
        """All requests of an open loop that arrive now."""
        now = self.agenda.now_ps
        while self.next_arrival_ps() == now:
            self._enter(self._roots[self._next_root], later=False)
            self._next_root += 1
        self._arrive_next()
        if self._arrived and self.agenda.is_quiet:
            self._route(None)
        elif self._arrived:
            self.agenda.call(self._route, phase=ROUTES)

    def _arrive_at(self, request: int, at_ps: int) -> None:
        delay = at_ps - self.agenda.now_ps
        if delay == 0:
            self._enter(request)
        else:
            self.agenda.call(self._arrive_later, delay_ps=delay, phase=ENDS, value=request)

    def _arrive_later(self, event: object) -> None:
        self._enter(event.value)  # type: ignore[attr-defined]  # an event of the agenda

    def _enter(self, request: int, *, later: bool = True) -> None:
        """A request is there; it is routed when this instant's iterations have ended, ``later`` by itself."""
        self.measures.arrival_ps[request] = self.agenda.now_ps
        segments = self.workload.segments[request] if self.workload.segments else ()
        live = Live(request, self._inputs[request], self._outputs[request], segments, self._keeps[request])
        engine = self.specs[0].engine
        delay_s = engine.frontend_s + engine.frontend_s_per_token * live.prompt_tokens
        if delay_s > 0:
            self.agenda.call(self._queued, delay_ps=round(delay_s * PS_PER_S), phase=ENDS, value=live)
        elif later:
            self._to_route(live)
        else:
            self._arrived.append(live)

    def _queued(self, event: object) -> None:
        self._to_route(event.value)  # type: ignore[attr-defined]  # an event of the agenda

    def _to_route(self, live: Live) -> None:
        if not self._arrived:
            self.agenda.call(self._route, phase=ROUTES)
        self._arrived.append(live)

    def _route(self, _: object) -> None:
        """Send all that arrived at this instant to ranks, in order of their numbers."""
        arrived, self._arrived = sorted(self._arrived, key=lambda live: live.request), []
        for live in arrived:
            place = self._chosen(live, decode=live.carried)
            if place is None:
                self._homeless.append(live)
                continue
            source = self._leaving.pop(live, None)
            if source is None:
                self.instances[place[0]].submit(live, place[1])
            else:
                self._hand_over(live, source, place)

    def _chosen(self, live: Live, *, decode: bool) -> tuple[int, int] | None:
        """Instance and rank for a request; None while there is none."""
        targets = self._targets[decode]
        if not targets:
            return None
        if self.router.reads_caches:
            for instance in self.instances:
                instance.look()
        index = self.router.choose(targets, live.segments, self._routed, self._draws[live.request])
        self._routed += 1
        return self._lists[decode][index]

    def _hand_over(self, live: Live, source: int, place: tuple[int, int]) -> None:
        """Start moving the KV of a request, which the source keeps until then; both move one at a time."""
        seconds = self._transfer.latency_s + self._transfer.s_per_token * live.prompt_tokens
        free = self._link_free_ps
        start = max(self.agenda.now_ps, free[source], free[place[0]])
        free[source] = free[place[0]] = start + round(seconds * PS_PER_S)
        delay_ps = free[source] - self.agenda.now_ps
        self.agenda.call(self._handed_over, delay_ps=delay_ps, phase=ENDS, value=(live, source, place))

    def _handed_over(self, event: object) -> None:
        live, source, place = event.value  # type: ignore[attr-defined]  # an event of the agenda
        self.instances[source].release(live)
        if self.instances[place[0]].alive:
            self.instances[place[0]].submit(live, place[1])
        else:
            self._again([live])

    def _again(self, lost: list[Live]) -> None:
        """Requests of a dead instance start again with what the client has seen as part of the prompt."""
        for live in lost:
            if live.carried:
                live.prompt_tokens, live.carried = live.prompt_tokens + 1, False
            self.measures.retries[live.request] += 1
            self._to_route(live)

    def _change(self, event: object) -> None:
        change: Change = event.value  # type: ignore[attr-defined]  # an event of the agenda
        instance = self.instances[change.instance]
        if change.kind == "slow":
            instance.pricer.slowdown = change.factor
            instance.wake()
            return
        self._open[change.instance] = change.kind == "up"
        if change.kind == "down" and instance.alive:
            lost = instance.kill() + self._stranded(change.instance)
            self._reopened()
            self._again(lost)
            return
        if change.kind == "up":
            instance.alive = True
        self._reopened()
        homeless, self._homeless = self._homeless, []
        for live in homeless:
            self._to_route(live)

    def _stranded(self, source: int) -> list[Live]:
        """Requests that waited on a dead instance for another to take their KV."""
        gone = [live for live in self._homeless if self._leaving.get(live) == source]
        self._homeless = [live for live in self._homeless if live not in gone]
        for live in gone:
            del self._leaving[live]
        return gone

    def _reopened(self) -> None:
        """Who takes prompts, and who takes requests that decode."""
        for decode in (False, True):
            roles = ("both", "decode" if decode else "prefill")
            self._lists[decode] = [
                (i, rank)
                for i, spec in enumerate(self.specs)
                if spec.role in roles and self._open[i] and self.instances[i].alive
                for rank in range(spec.num_ranks)
            ]
            self._targets[decode] = [self.instances[i].ranks[rank] for i, rank in self._lists[decode]]
