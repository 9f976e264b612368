"""What a service does that random ones do not show: pools, caches, added instances, guards of cost."""

import time
from dataclasses import dataclass, replace

import numpy as np
import pytest

from moesim.errors import InfeasibleError, InputError
from moesim.evidence import rng_for
from moesim.serving.engine import Engine
from moesim.serving.instance import Instance
from moesim.serving.iterations import NOTHING, Exact, Prefill
from moesim.serving.measures import NUM_BINS
from moesim.serving.memo import Memo
from moesim.serving.naive import NaiveInstance
from moesim.serving.policies import arrival_processes, length_distributions, routers
from moesim.serving.requests import closed_loop, open_loop, read_requests, with_prefixes, with_turns
from moesim.serving.service import Change, InstanceSpec, Service, Transfer
from moesim.serving.step_times import StepShape
from moesim.serving.summary import Objectives, latencies, numbers, vllm_document
from moesim.serving.workload import Workload


@dataclass(frozen=True)
class Line:
    """Step times of a line."""

    num_ranks: int = 1

    def seconds(self, shapes):
        return (5e-3 + 2e-5 * shapes.new_tokens + 2e-8 * shapes.decode_context_tokens).max(axis=1)

    def overhead(self, shapes):
        return np.zeros(shapes.num_samples)


ENGINE = Engine(num_blocks=2000, max_num_batched_tokens=1000, max_num_seqs=32)


def steady(rate_per_s, count, inputs, outputs):
    lengths = (length_distributions.build("fixed", {"tokens": n}) for n in (inputs, outputs))
    return open_loop(arrival_processes.build("uniform", {"rate_per_s": rate_per_s}), *lengths, count, seed=0)


def played(workload, specs, router="round_robin", **options):
    service = Service(workload, specs, routers.build(router), **options)
    return service, service.run()


def instances(engine=ENGINE, count=1, *, num_ranks=1, role="both"):
    return [InstanceSpec(engine, Exact(Line(num_ranks), engine), num_ranks, role)] * count


def test_one_request_alone_is_its_iterations_in_turn():
    workload = Workload.of(np.zeros(1), np.array([500]), np.array([3]))
    _, done = played(workload, instances())
    first = 5e-3 + 2e-5 * 500
    later = sum(5e-3 + 2e-5 + 2e-8 * (500 + k) for k in range(2))
    found = latencies(workload, done)
    assert found.ttft_s[0] == pytest.approx(first, abs=1e-11)
    assert found.tpot_s[0] == pytest.approx(later / 2, abs=1e-11)
    assert found.e2e_latency_s[0] == pytest.approx(first + later, abs=1e-11)


def test_handing_over_costs_the_second_token_and_not_the_first():
    workload = steady(1.0, 5, 400, 4)
    specs = [*instances(role="prefill"), *instances(role="decode")]
    _, done = played(workload, specs, transfer=Transfer(0.01, 1e-4))
    _, alone = played(workload, instances())
    found, usual = latencies(workload, done), latencies(workload, alone)
    assert found.ttft_s == pytest.approx(usual.ttft_s)
    assert found.e2e_latency_s - usual.e2e_latency_s == pytest.approx(0.05, rel=1e-6)
    assert set(done.target) == {1}


def test_kv_stays_where_it_was_made_until_it_has_moved():
    """One prompt fills the blocks of the prefill instance: the next starts when the first has left."""
    small = replace(ENGINE, num_blocks=26)
    workload = Workload.of(np.zeros(2), np.array([400, 400]), np.array([4, 4]))
    specs = [*instances(small, role="prefill"), *instances(role="decode")]
    _, done = played(workload, specs, transfer=Transfer(0.01, 1e-4))
    first_s = 5e-3 + 2e-5 * 400
    assert latencies(workload, done).ttft_s == pytest.approx([first_s, 2 * first_s + 0.05])


def test_conversations_find_what_was_said_in_the_cache():
    cached = replace(ENGINE, prefix_caching=True)
    workload = with_turns(steady(0.5, 12, 160, 64), 4, 1.0)
    _, done = played(workload, instances(cached))
    found = np.array(done.cached_tokens).reshape(3, 4)
    # whole blocks of the 160 + 64 tokens a turn, without the last one that was never stored
    assert found.tolist() == [[0, 208, 432, 656]] * 3
    _, cold = played(workload, instances(ENGINE))
    assert not any(cold.cached_tokens)
    assert done.prompt_tokens == cold.prompt_tokens - found.sum()


def test_a_router_that_reads_caches_finds_more_in_them():
    cached = replace(ENGINE, prefix_caching=True, num_blocks=400)
    workload = with_prefixes(steady(20.0, 200, 64, 8), 12, 1600, seed=0)
    hits = {}
    for router in ("round_robin", "prefix_aware"):
        _, done = played(workload, instances(cached, 4), router)
        hits[router] = sum(done.cached_tokens)
    assert hits["prefix_aware"] > 1.5 * hits["round_robin"]


def test_an_added_instance_takes_the_queue_over_when_its_weights_are_there():
    workload = steady(80.0, 600, 600, 40)
    specs = [*instances(), replace(instances()[0], starts=False)]
    _, alone = played(workload, instances())
    _, helped = played(workload, specs, changes=[Change(2.0, "up", 1)])
    of_second = np.array(helped.target) == 1
    assert not of_second[np.array(helped.arrival_ps) < 2 * 10**12].any()
    assert of_second[np.array(helped.arrival_ps) > 2 * 10**12].any()
    assert latencies(workload, helped).ttft_s.mean() < 0.8 * latencies(workload, alone).ttft_s.mean()


def test_a_dead_instance_loses_time_and_no_request():
    workload = steady(20.0, 100, 300, 50)
    _, sound = played(workload, instances(count=2))
    _, hurt = played(workload, instances(count=2), changes=[Change(1.0, "down", 0)])
    assert min(hurt.finish_ps) > 0
    assert sum(hurt.retries) > 0
    assert hurt.output_tokens == workload.output_tokens.sum()
    assert latencies(workload, hurt).e2e_latency_s.mean() > latencies(workload, sound).e2e_latency_s.mean()
    with pytest.raises(InfeasibleError, match="no instance left"):
        played(workload, instances(), changes=[Change(1.0, "down", 0)])


def test_memo_is_exact_on_lines_and_the_same_alone_or_in_a_run():
    for ranks in (1, 3):
        exact = Exact(Line(ranks), ENGINE)
        memo = Memo(exact, max_tokens=1000, max_decodes=32, max_context=5000)
        decodes = 7 if ranks == 1 else np.array([7, 5, 7])
        start = 7 * 100 if ranks == 1 else np.array([700, 500, 700])
        contexts = np.multiply.outer(np.arange(400), decodes) + start
        run = memo.run(decodes, contexts)
        alone = [memo.one(NOTHING, decodes, int(c) if ranks == 1 else c) for c in contexts]
        assert run.tolist() == alone
        assert run == pytest.approx(exact.run(decodes, contexts), rel=1e-9)
        assert memo.error().p90 < 1e-9
    prefill = Prefill(333, 333 * 77, 333**2, 1)
    memo = Memo(Exact(Line(), ENGINE), max_tokens=1000, max_decodes=32, max_context=5000)
    assert memo.one(prefill, 5, 5000) == pytest.approx(memo.exact.one(prefill, 5, 5000), rel=1e-9)


def test_memo_tells_how_far_it_is_off():
    class Bent(Line):
        def seconds(self, shapes):
            return super().seconds(shapes) * (1 + 0.2 * np.sin(shapes.new_tokens[:, 0]))

    memo = Memo(Exact(Bent(), ENGINE), max_tokens=1000, max_decodes=32, max_context=5000)
    for batch in range(1, 32):
        memo.one(NOTHING, batch, batch * 300)
    off = memo.error()
    assert off.num_shapes > 3
    assert 0.005 < off.p90 < 0.4


def test_costs_of_the_clock():
    """Ratios only: lazy against naive, events an iteration, and nothing that grows with tokens."""
    workload = steady(20.0, 150, 500, 300)
    memo = Memo(Exact(Line(), ENGINE), max_tokens=1000, max_decodes=32, max_context=2000)
    spec = [InstanceSpec(ENGINE, memo)]
    seconds = {}
    for make in (Instance, NaiveInstance, Instance):  # the first fills the memo
        start = time.process_time()
        service, done = played(workload, spec, make=make)
        seconds[make] = time.process_time() - start
    assert seconds[NaiveInstance] > 5 * seconds[Instance]
    assert service.agenda.num_events < 3 * done.num_steps
    longer = steady(2.0, 15, 500, 30_000)
    roomy = replace(ENGINE, num_blocks=10**6)
    service, done = played(longer, [InstanceSpec(roomy, Exact(Line(), roomy))])
    assert done.num_steps > 30_000
    assert service.agenda.num_events < 0.1 * done.num_steps
    assert len(done.total().rows) <= NUM_BINS
    assert len(done.gaps.weights) < 500


def test_numbers_and_vllm_fields_agree():
    workload = closed_loop(
        4, 0.5, *(length_distributions.build("uniform", {"low": 10, "high": n}) for n in (500, 60)), 80,
        seed=3, warmup=10,
    )  # fmt: skip
    _, done = played(workload, instances())
    objectives = Objectives(ttft_s=0.012)
    ours = numbers(workload, done, objectives, 2)
    theirs = vllm_document(workload, done, objectives, model="m")
    assert theirs["completed"] == 70
    for name in ("ttft", "tpot", "itl"):
        assert theirs[f"mean_{name}_ms"] == pytest.approx(1e3 * ours[f"mean_{name}_s"][0])
        assert theirs[f"p99_{name}_ms"] == pytest.approx(1e3 * ours[f"p99_{name}_s"][0])
    assert theirs["request_goodput"] == pytest.approx(ours["goodput_requests_per_s"][0])
    assert 0 < ours["good_fraction"][0] < 1
    # all gaps together are all time between first and last tokens
    centres, weights = done.gaps.seconds()
    found = latencies(replace(workload, warmup=0), done)
    assert (centres * weights).sum() == pytest.approx((found.e2e_latency_s - found.ttft_s).sum(), rel=2e-3)


def test_clients_have_one_request_each():
    fixed = length_distributions.build("fixed", {"tokens": 50})
    workload = closed_loop(3, 0.0, fixed, fixed, 30, seed=0)
    _, done = played(workload, instances())
    edges = sorted([(t, 1) for t in done.arrival_ps] + [(t, -1) for t in done.finish_ps])
    assert max(np.cumsum([step for _, step in edges])) == 3


@pytest.mark.parametrize("name", arrival_processes.names())
def test_arrivals_are_ordered_and_have_their_rate(name):
    given = {"burst": {"size": 4, "period_s": 0.4}}.get(name, {"rate_per_s": 10.0})
    process = arrival_processes.build(name, given)
    times = process.times(4000, rng_for(0, "arrivals"))
    assert len(times) == 4000
    assert (np.diff(times) >= 0).all()
    assert 4000 / times[-1] == pytest.approx(10.0, rel=0.1)


def test_requests_from_files(tmp_path):
    good = tmp_path / "good.jsonl"
    good.write_text(
        '{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 9]}\n'
        '{"timestamp": 500, "input_length": 1100, "output_length": 5, "hash_ids": [1, 2, 8]}\n'
    )
    workload = read_requests(good)
    assert workload.arrival_ps.tolist() == [0, 5 * 10**11]
    assert workload.segments == (((1, 512), (2, 512)),) * 2
    _, done = played(workload, instances(replace(ENGINE, prefix_caching=True)))
    assert done.cached_tokens == [0, 1024]
    bad = tmp_path / "bad.csv"
    bad.write_text("arrival_s,input_tokens,output_tokens\n0,10,10\n-1,10,10\n1,x,0\n")
    with pytest.raises(InputError, match=r"bad.csv:3 .*arrival_s: got '-1'; accepted: a number from") as told:
        read_requests(bad)
    fields = [problem.field.rpartition(".")[2] for problem in told.value.problems]
    assert fields == ["arrival_s", "input_tokens", "output_tokens"]


def test_shapes_are_sums_over_a_rank():
    shape = StepShape.of(
        prefill_tokens=30, prefill_context_products=30 * 70, prefill_squares=900, num_prefills=1
    )
    assert shape.prefill_keys[0, 0] == 70 + 15
    assert shape.new_tokens[0, 0] == 30


def test_a_request_that_never_fits_is_told_before_anything_runs():
    workload = Workload.of(np.zeros(2), np.array([10, 10**6]), np.array([5, 5]))
    with pytest.raises(InfeasibleError, match=r"request 1 can never be admitted: it needs 1,000,004 tokens"):
        played(workload, instances())
    with pytest.raises(
        InputError, match=r"workload.arrival_s: request 1 has -0.5; accepted: a time from 0 on"
    ):
        Workload.of(np.array([0.0, -0.5]), np.array([1, 1]), np.array([1, 1]))


def test_a_client_behind_its_instance_sees_all_later_at_the_same_pace():
    workload = steady(1.0, 3, 100, 50)
    late = replace(ENGINE, delivery_tokens=2.5)
    _, prompt = played(workload, instances())
    _, behind = played(workload, instances(late))
    usual, found = latencies(workload, prompt), latencies(workload, behind)
    assert found.tpot_s == pytest.approx(usual.tpot_s)
    assert found.ttft_s == pytest.approx(usual.ttft_s + 2.5 * usual.tpot_s)
    assert found.e2e_latency_s == pytest.approx(usual.e2e_latency_s + 2.5 * usual.tpot_s)
