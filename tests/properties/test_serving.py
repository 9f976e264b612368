"""Random services: the lazy instance is the naive one, and nothing is lost or made up."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_samples import small_trace

from moesim.evidence import rng_for
from moesim.serving.drafting import Drafting
from moesim.serving.engine import Engine
from moesim.serving.expert_steps import Fixed, StepExperts
from moesim.serving.instance import Instance
from moesim.serving.iterations import Exact
from moesim.serving.memo import Memo
from moesim.serving.naive import NaiveInstance
from moesim.serving.policies import batching_policies, routers
from moesim.serving.request_rows import RequestRows
from moesim.serving.service import Change, InstanceSpec, Service, Transfer
from moesim.serving.workload import Workload
from moesim.units import PS_PER_S

SHARED = 7
"""Segments that prompts may begin with."""


@dataclass(frozen=True)
class Wavy:
    """Step times with bends everywhere, so that equal sums are not equal by luck."""

    num_ranks: int = 1

    def seconds(self, shapes):
        attended = shapes.prefill_context_products + 0.5 * shapes.prefill_squares
        own = 5e-3 + shapes.new_tokens * 1e-5 * (1 + 0.1 * np.sin(shapes.new_tokens))
        own = own + shapes.decode_context_tokens * 2e-9 + attended * 1e-9
        return own.max(axis=1) + shapes.new_tokens.sum(axis=1) * 1e-6

    def overhead(self, shapes):
        return 1e-4 + shapes.num_decodes.max(axis=1) * 1e-6


@st.composite
def engines(draw):
    chunked = draw(st.booleans())
    num_blocks = draw(st.integers(40, 120))
    block_tokens = draw(st.sampled_from([1, 4, 16]))
    return Engine(
        num_blocks=num_blocks,
        block_tokens=block_tokens,
        max_num_batched_tokens=draw(st.integers(12, 300)) if chunked else 4000,
        max_num_seqs=draw(st.integers(1, 12)),
        chunked_prefill=chunked,
        batching=batching_policies.build(draw(st.sampled_from(batching_policies.names()))),
        prefix_caching=draw(st.booleans()),
        reserve_whole=draw(st.booleans()),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        swap_s_per_block=1e-5,
        frontend_s=draw(st.sampled_from([0.0, 1e-3])),
        drafting=draw(st.sampled_from([None, None, Drafting(1, 0.8), Drafting(3, 0.6, 0.2, seed=2)])),
    )


@st.composite
def workloads(draw, engine):
    seed = draw(st.integers(0, 2**16))
    rng = rng_for(seed, "workload")
    count = draw(st.integers(1, 40))
    room = (engine.num_blocks - 2) * engine.block_tokens
    inputs = rng.integers(1, max(room // 2, 2), count)
    longest = draw(st.sampled_from([30, 60, 60, 200]))  # the oracle takes a step for each token
    outputs = rng.integers(1, max(min(room // 2, longest), 2), count)
    gaps = rng.exponential(draw(st.sampled_from([1e-4, 0.01, 0.2])), count)
    arrival = np.cumsum(np.where(rng.random(count) < 0.2, 0.0, gaps))
    clients = draw(st.sampled_from([None, 1, 5]))
    flow = Workload.of(np.zeros(count) if clients else arrival, inputs, outputs, clients=clients)
    if not draw(st.booleans()):
        return flow
    return _with_segments(flow, rng, engine)


def _with_segments(flow, rng, engine):
    """Prompts of a few families, and some conversations of several turns."""
    segments, keeps, after = [], [], []
    delay = flow.arrival_ps.copy()
    for request, tokens in enumerate(flow.input_tokens.tolist()):
        family = int(rng.integers(SHARED))
        chain = ((family, 3 + 4 * family),) if tokens >= 3 + 4 * family else ()
        turn = request > 0 and rng.random() < 0.3 and flow.clients is None
        after.append(request - 1 if turn else -1)
        if turn:
            delay[request] = int(0.05 * PS_PER_S)
            kept = flow.input_tokens[request - 1] + flow.output_tokens[request - 1] - 1
            already = sum(n for _, n in segments[-1])
            longer = ((SHARED + request - 1, int(kept - already)),) if kept > already else ()
            chain = (*segments[-1], *longer)
            if sum(n for _, n in chain) > tokens:
                chain = ()
        segments.append(chain)
        keeps.append(SHARED + request)
    return replace(
        flow,
        arrival_ps=delay,
        after=np.array(after),
        segments=tuple(segments),
        keeps=np.array(keeps),
    )


@dataclass(frozen=True)
class PerRow:
    """Each row of the slowest rank costs as much, and each touched expert."""

    drafts = 0

    def beside_mean_s(self, load, tokens):
        slowest = (load.rows * 3e-6 + load.touched * 1e-5).max(axis=1).sum(axis=0)
        return slowest - tokens * 1e-6


class Turning:
    """Experts move to the next rank every third iteration, which costs time."""

    def __init__(self):
        self.age = self.turned = self.seen = 0

    def _fixed(self):
        return Fixed(np.roll(np.tile([0, 1, 2, 3, 0, 2], (3, 1)), self.turned, axis=1), 2, 4)

    def spread(self, counts):
        return self._fixed().spread(counts)

    def horizon(self):
        return 3 - self.age

    def done(self, counts):
        self.age += len(counts)
        self.seen += int(counts.sum())
        if self.age < 3:
            return 0.0
        self.age, self.turned = 0, self.seen
        return 2e-4


def experts_of(count, seed):
    trace = small_trace(requests=6, experts=4, seed=seed, empty=0.1)
    rows = RequestRows.of(trace, count, seed=seed)
    return lambda: StepExperts(rows, PerRow(), Turning())


@st.composite
def services(draw):
    engine = draw(engines())
    flow = draw(workloads(engine))
    num_ranks = draw(st.sampled_from([1, 1, 2, 5]))
    exact = Exact(Wavy(num_ranks), engine, float(engine.tokens_per_decode))
    memo = Memo(exact, max_tokens=300, max_decodes=12, max_context=400)
    iterations = draw(st.sampled_from([exact, memo]))
    disaggregated = draw(st.booleans())
    count = 2 if disaggregated else draw(st.integers(1, 3))
    roles = ["prefill", "decode"] if disaggregated else ["both"] * count
    experts = draw(st.sampled_from([None, None, None, experts_of(flow.num_requests, seed=num_ranks)]))
    specs = [InstanceSpec(engine, iterations, num_ranks, role, experts=experts) for role in roles]
    changes = []
    for _ in range(draw(st.integers(0, 2))):
        instance, at_s = draw(st.integers(0, count - 1)), draw(st.floats(0.001, 0.5))
        if draw(st.booleans()):
            changes.append(Change(at_s, "slow", instance, draw(st.sampled_from([0.5, 3.0]))))
        else:
            changes += [Change(at_s, "down", instance), Change(at_s + 0.1, "up", instance)]
    router = routers.build(draw(st.sampled_from(routers.names())))
    return flow, specs, router, changes


def play(make, setting):
    flow, specs, router, changes = setting
    service = Service(flow, specs, router, changes=changes, transfer=Transfer(1e-3, 1e-5), seed=1, make=make)
    return service, service.run()


def routed(service):
    """Sums over time of what the experts of every instance recorded."""
    found = [instance.experts for instance in service.instances if instance.experts is not None]
    return [[e.moves, *(float(e.series.column(n).sum()) for n in e.series.names)] for e in found]


@settings(max_examples=80)
@given(services())
def test_lazy_is_naive(setting):
    service, lazy = play(Instance, setting)
    oracle, naive = play(NaiveInstance, setting)
    for name in (
        "arrival_ps",
        "first_scheduled_ps",
        "first_token_ps",
        "finish_ps",
        "preemptions",
        "cached_tokens",
        "retries",
        "target",
        "prompt_tokens",
        "output_tokens",
        "num_steps",
    ):
        assert getattr(lazy, name) == getattr(naive, name), name
    assert lazy.gaps.weights == naive.gaps.weights
    assert routed(service) == [pytest.approx(sums, rel=1e-9) for sums in routed(oracle)]


@settings(max_examples=50)
@given(services())
def test_nothing_is_lost_or_made_up(setting):
    flow, specs, _, changes = setting
    service, done = play(Instance, setting)
    arrival, first, finish = (np.array(x) for x in (done.arrival_ps, done.first_token_ps, done.finish_ps))
    assert (arrival >= 0).all()
    assert (first > arrival).all()
    assert (finish >= first).all()
    # every token exactly once, also where a request was preempted or its instance died
    assert done.output_tokens == flow.output_tokens.sum()
    if specs[0].engine.drafting is None:
        assert done.gaps.total == flow.output_tokens.sum() - flow.num_requests
    assert done.total().column("output_tokens").sum() == pytest.approx(done.output_tokens)
    if not any(done.preemptions) and not any(done.retries):
        assert done.prompt_tokens == flow.input_tokens.sum() - sum(done.cached_tokens)
    for instance in service.instances:
        for rank in instance.ranks:
            # an empty rank holds no block outside its prefix cache, and may give all of those back
            rank.sync(10**9)
            assert rank.own_blocks == 0
            assert not rank.running
            assert not rank.waiting
            assert rank.cache.blocks == rank.cache.evictable <= specs[0].engine.num_blocks
            assert rank.num_decodes == rank.context_base == 0
    # Little's law, from two accounts: time in queues and batches by bins, and by request
    lost_time = any(change.kind == "down" for change in changes) or specs[0].engine.frontend_s
    if specs[0].role == "both" and not lost_time:
        inside = done.total().column("running").sum() + done.total().column("waiting").sum()
        assert inside == pytest.approx((finish - arrival).sum())
    assert service.agenda.num_events <= 3 * done.num_steps + 8 * (flow.num_requests + len(changes) + 1)
