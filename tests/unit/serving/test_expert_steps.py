"""Experts of single iterations: rows of requests, loads of ranks, and placements that change."""

import numpy as np
import pytest
from trace_samples import small_trace, trace_of

from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.placement import Problem as PlacementProblem
from moesim.placement import placement_methods
from moesim.placement.split_registry import splits
from moesim.scenario.resolve import resolve
from moesim.scenario.serving import build_serving
from moesim.scenario.serving_experts import PlacedExperts, Renewal
from moesim.serving.expert_steps import Fixed, StepExperts
from moesim.serving.request_rows import RequestRows

REPLAY = ["workload.num_requests=12", "workload.rate_per_s=20"]


def test_a_request_walks_through_its_own_rows():
    trace = small_trace(tokens=60, requests=6)  # of 10 rows each: 6 of the prompt, 4 decoded
    rows = RequestRows.of(trace, 9, seed=0)
    request = np.full(6, 2)
    assert rows.prompts.rows(request, np.arange(6)).tolist() == [20, 21, 22, 23, 24, 25]
    assert rows.answers.rows(request[:4], np.arange(4)).tolist() == [26, 27, 28, 29]


def test_a_longer_request_goes_on_in_its_domain():
    trace = small_trace(tokens=60, requests=6)
    rows = RequestRows.of(trace, 9, seed=0)
    for ring in (rows.prompts, rows.answers):
        for request in range(9):
            met = ring.rows(np.full(200, request), np.arange(200))
            domain = np.asarray(trace.domain_index)[met]
            assert (domain == domain[0]).all()
            assert len(np.unique(met)) == (np.asarray(trace.domain_index)[ring.order] == domain[0]).sum()


def test_prompt_rows_answer_where_nothing_was_decoded():
    ids = np.arange(12).reshape(6, 1, 2) % 4
    rows = RequestRows.of(trace_of(ids, 4), 1, seed=0)
    assert rows.answers.rows(np.zeros(6, int), np.arange(6)).tolist() == [0, 1, 2, 3, 4, 5]


def test_counts_are_those_of_the_rows_and_skip_empty_choices():
    trace = small_trace(empty=0.3)
    rows = RequestRows.of(trace, 6, seed=0)
    chosen = np.array([[0, 5, 5], [59, 1, 7]])
    counts = rows.counts(chosen)
    for step in range(2):
        for layer in range(3):
            ids = trace.expert_ids[chosen[step], layer].ravel()
            assert counts[step, layer].tolist() == np.bincount(ids[ids < 8], minlength=8).tolist()


def test_tokens_go_evenly_over_copies():
    fixed = Fixed(np.array([[0, 1, 0, 2]]), 2, 3)
    load = fixed.spread(np.array([[[7, 1, 0]]])).load
    assert load.rows[0, :, 0].tolist() == [5, 3]
    assert load.touched[0, :, 0].tolist() == [2, 1]


def _balance(**more):
    counts = rng_for(1, "test").integers(0, 40, (50, 2, 8))
    counts[:, :, :2] *= 8
    problem = PlacementProblem.with_redundancy(counts[:25].sum(axis=0), 4, 4)
    start = placement_methods.build("linear").solve(problem, rng_for(0, "test")).placement
    values = {"move_s": 0.5, "renewal": None, "split": None, "seed": 0} | more
    return counts, PlacedExperts(start, problem, **values)


def test_a_renewed_placement_is_better_and_is_paid_for():
    counts, balance = _balance(renewal=Renewal(placement_methods.build("eplb"), 10, 5))
    before = balance.spread(counts[:10]).load.rows.max(axis=1).sum()
    assert balance.horizon() == 10
    assert balance.done(counts[:6]) == 0.0
    assert balance.horizon() == 4
    resident = balance.placement.resident
    moved_s = balance.done(counts[6:10])
    moved = (balance.placement.resident & ~resident).sum(axis=(0, 1)).max()
    assert moved > 0
    assert moved_s == pytest.approx(0.5 * moved)
    assert balance.spread(counts[:10]).load.rows.max(axis=1).sum() < before


@pytest.mark.parametrize("policy", ["llep", "least_loaded", "even"])
def test_a_policy_keeps_every_token(policy):
    params = {"min_tokens": 1} if policy == "llep" else {}
    counts, balance = _balance(split=splits.build(policy, params, field="policy"))
    spread = balance.spread(counts[:4])
    assert (counts[:4].sum(axis=2) == spread.load.rows.sum(axis=1).T).all()
    assert (spread.sent_s > 0).any() == (policy == "llep")


def test_spilling_evens_ranks_out():
    counts, plain = _balance()
    _, spilling = _balance(split=splits.build("llep", {"min_tokens": 1}, field="policy"))
    peaks = [b.spread(counts[:4]).load.rows.max(axis=1).mean() for b in (plain, spilling)]
    assert peaks[1] < peaks[0]


def test_drawn_batches_cost_what_their_mean_says():
    """Prices and replayed steps are of one piece: the very batches behind a mean are nothing beside it."""
    costs = build_serving(resolve("gpt_oss_20b_serve_h100x8_replay", REPLAY)).pools[0].deployment.costs
    moe = next(iter(costs._expert_layers))
    tokens = np.array([8.0, 256.0])
    assert costs.experts_of(costs._draws(moe).loads(tokens), tokens) == pytest.approx(
        costs.mean_experts_s(tokens)
    )


def test_a_dense_model_has_nothing_to_rebalance():
    dense = ["model=llama_3_1_8b", "plan={tp: 1}", "placement={method: linear}", "routing=null"]
    with pytest.raises(InputError, match="dense model"):
        build_serving(resolve("gpt_oss_20b_serve_h100x8_replay", [*REPLAY, *dense]))


def test_placing_anew_needs_a_method_that_places_by_loads():
    own = [*REPLAY, "placement={method: linear}"]
    built = build_serving(resolve("gpt_oss_20b_serve_h100x8_replay", own))
    with pytest.raises(InputError, match=r"placement\.method"):
        built.service(built.iterations())


def test_prompts_cost_the_same_in_any_order():
    """More prompt tokens than are counted one by one: which stand for all is a matter of the requests."""

    class PerRow:
        drafts = 0

        def beside_mean_s(self, load, tokens):
            return (load.rows.max(axis=1) * np.arange(1, 4)[:, None]).sum(axis=0)

    rows = RequestRows.of(small_trace(tokens=600), 6, seed=0)
    none = np.zeros(0, dtype=np.int64)
    chunks = [(0, 700, 0), (3, 500, 20), (4, 900, 1)]
    slots = np.tile(np.arange(8), (3, 1))
    found = [
        StepExperts(rows, PerRow(), Fixed(slots, 4, 8)).mixed_s(none, none, order)
        for order in (chunks, chunks[::-1])
    ]
    assert found[0] == found[1]
