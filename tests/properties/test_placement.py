"""Laws of placements: who is never worse than whom, what no bound exceeds, what names do not matter."""

import dataclasses
import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.evidence import rng_for
from moesim.placement import (
    Placement,
    Problem,
    best_bound,
    evaluate,
    lower_bounds,
    placement_methods,
    rank_loads,
)
from moesim.placement.affinity import block_descent, same_rank_share, spectral_bound, transition_cost
from moesim.placement.location_search import Copies
from moesim.placement.renumber import renumbered

QUICK_ILP = {"rounds": 2, "variants": 4, "max_nodes": 1, "max_variables": 150}
QUICK = {
    "affinity": {"rounds": 5},
    "co_activation": {"rounds": 2},
    "annealing": {"steps": 10},
    **{
        f"{name}_ilp": {"max_nodes": 1, "max_variables": 40}
        for name in ("robust", "speed", "topology", "migration")
    },
    "moetuner": {"max_nodes": 1, "max_variables": 40},
}
EXACT_EFFORT = {"gap_fraction": 0.0, "max_nodes": 5_000}
EXACT_ILP = {"rounds": 1, "variants": 4, "gap_fraction": 0.0, "max_nodes": 5_000}


@st.composite
def problems(draw, max_experts=24, max_layers=3, max_ranks=6):
    ranks = draw(st.integers(1, max_ranks))
    experts = draw(st.integers(1, max_experts))
    least = -(-experts // ranks)
    slots = draw(st.integers(least, min(experts, least + 2)))
    layers = draw(st.integers(1, max_layers))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    skew = draw(st.sampled_from([0.0, 0.5, 1.0, 2.0]))
    loads = 100 * np.exp(skew * rng.normal(size=(layers, experts)))
    if draw(st.booleans()):
        loads = np.floor(loads)
    if draw(st.booleans()):
        loads[rng.random(loads.shape) < 0.3] = 0
    return Problem(loads, ranks, slots)


def num_fillings(problem):
    """Placements of a layer that brute force has to look at, up to the numbering of ranks."""
    fillings = math.comb(problem.num_experts + problem.slots_per_rank - 1, problem.slots_per_rank)
    return math.comb(fillings + problem.num_ranks - 1, problem.num_ranks)


tiny_problems = problems(max_experts=5, max_layers=1, max_ranks=3).filter(lambda p: p.num_slots <= 8)
small_problems = problems(max_experts=8, max_layers=1, max_ranks=4).filter(
    lambda p: num_fillings(p) <= 100_000
)


def solve(name, problem, seed=0, **params):
    return placement_methods.build(name, params).solve(problem, rng_for(seed, "placement"))


def largest(problem, placement):
    return evaluate(problem.loads, placement).largest


def smallest_possible(problem):
    """Optimum of one layer with the even split, by trying every filling of every rank."""
    experts, loads = problem.num_experts, problem.loads[0]
    fillings = itertools.combinations_with_replacement(range(experts), problem.slots_per_rank)
    held = np.array([np.bincount(f, minlength=experts) for f in fillings])
    choices = np.array(list(itertools.combinations_with_replacement(range(len(held)), problem.num_ranks)))
    counts = held[choices]
    copies = counts.sum(axis=1)
    counts, copies = counts[copies.all(axis=1)], copies[copies.all(axis=1)]
    return (counts * (loads / copies)[:, None, :]).sum(axis=2).max(axis=1).min()


def known(problem, seed=0):
    """The problem with everything that methods may ask for."""
    rng = np.random.default_rng(seed)
    layers, experts, ranks = problem.num_layers, problem.num_experts, problem.num_ranks
    pairs = rng.integers(0, 20, (layers, experts, experts)).astype(float)
    return dataclasses.replace(
        problem,
        batch_loads=rng.poisson(problem.loads / 10, (3, layers, experts)).astype(float),
        transitions=pairs[1:],
        co_activation=pairs + pairs.transpose(0, 2, 1),
        rank_costs=rng.random((layers, ranks)),
        start=solve("linear", problem).placement,
    )


@given(problems(), st.sampled_from(placement_methods.names()), st.integers(0, 3))
@settings(max_examples=60)
def test_valid_and_conserving(problem, name, seed):
    params = QUICK_ILP if name == "ilp" else QUICK.get(name, {})
    solution = solve(name, known(problem), seed, **params)
    placed = solution.placement
    assert (placed.copies >= 1).all()
    assert placed.copies.sum() <= problem.num_layers * problem.num_slots
    served = rank_loads(problem.loads, placed)
    np.testing.assert_allclose(served.sum(axis=1), problem.loads.sum(axis=1))
    if name != "replica_ilp":  # deals out the slots of all layers anew
        assert (largest(problem, placed) >= best_bound(problem, solution.lower_bound) * (1 - 1e-9)).all()
    if solution.own is not None and solution.own.bound is not None:
        assert solution.own.gap_fraction >= -1e-6


@given(problems(), st.sampled_from(["even", "solved"]))
@settings(max_examples=15)
def test_ilp_at_most_swaps_at_most_eplb(problem, split):
    eplb = largest(problem, solve("eplb", problem).placement)
    swaps = largest(problem, solve("eplb_swaps", problem).placement)
    ilp = largest(problem, solve("ilp", problem, split=split, **QUICK_ILP).placement)
    assert (swaps <= eplb * (1 + 1e-9)).all()
    assert (ilp <= swaps * (1 + 1e-9)).all()


@given(small_problems)
@settings(max_examples=40)
def test_ilp_is_the_optimum_of_small_problems(problem):
    best = smallest_possible(problem)
    solution = solve("ilp", problem, **EXACT_ILP)
    tolerance = 1e-5 * max(best, 1e-9)
    assert abs(largest(problem, solution.placement)[0] - best) <= tolerance
    for bound in (*lower_bounds(problem).values(), solution.lower_bound):
        assert bound[0] <= best * (1 + 1e-9)


@given(tiny_problems)
@settings(max_examples=15)
def test_solved_shares_do_at_least_as_well_as_even_ones(problem):
    shares = solve("ilp", problem, split="solved", **EXACT_ILP)
    found = largest(problem, shares.placement)[0]
    assert found <= smallest_possible(problem) * (1 + 1e-5)
    for bound in lower_bounds(problem).values():
        assert bound[0] <= found * (1 + 1e-9)


@given(tiny_problems, st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_names_of_experts_do_not_matter(problem, seed):
    renamed = np.random.default_rng(seed).permutation(problem.num_experts)
    other = Problem(problem.loads[:, renamed], problem.num_ranks, problem.slots_per_rank)
    one, two = (largest(p, solve("ilp", p, **EXACT_ILP).placement)[0] for p in (problem, other))
    assert abs(one - two) <= 1e-5 * max(one, 1e-9)
    for name, bound in lower_bounds(problem).items():
        np.testing.assert_allclose(bound, lower_bounds(other)[name], rtol=1e-9, atol=1e-9)


@given(problems(), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_names_of_ranks_do_not_matter(problem, seed):
    placed = solve("random", problem, 1).placement
    order = np.random.default_rng(seed).permutation(problem.num_ranks)
    by_rank = placed.physical_to_logical.reshape(problem.num_layers, problem.num_ranks, -1)
    other = Placement(
        by_rank[:, order].reshape(problem.num_layers, -1), problem.num_experts, problem.num_ranks
    )
    np.testing.assert_allclose(
        rank_loads(problem.loads, placed)[:, order], rank_loads(problem.loads, other), rtol=1e-12, atol=1e-9
    )


@given(problems(), st.booleans(), st.integers(0, 3))
@settings(max_examples=40)
def test_renumbering_keeps_loads_and_never_moves_more(problem, has_nodes, seed):
    start = solve("linear", problem).placement
    placed = solve("random", problem, seed).placement
    nodes = 1 if has_nodes else None
    new = renumbered(placed, start, nodes)
    assert new.moved_experts(start) <= placed.moved_experts(start)
    np.testing.assert_allclose(
        np.sort(rank_loads(problem.loads, new), axis=1), np.sort(rank_loads(problem.loads, placed), axis=1)
    )
    if has_nodes:  # every rank is a node of its own
        assert new == placed
    else:
        shuffled = np.random.default_rng(seed).permutation(problem.num_ranks)
        by_rank = start.physical_to_logical.reshape(problem.num_layers, problem.num_ranks, -1)[:, shuffled]
        shuffled_start = Placement(
            by_rank.reshape(problem.num_layers, -1), problem.num_experts, problem.num_ranks
        )
        assert renumbered(shuffled_start, start).moved_experts(start) == 0


@given(problems(), st.floats(0.01, 100))
@settings(max_examples=30)
def test_more_traffic_scales_the_objective(problem, factor):
    placed = solve("greedy", problem).placement
    before, after = evaluate(problem.loads, placed), evaluate(problem.loads * factor, placed)
    np.testing.assert_allclose(after.objective, before.objective * factor, rtol=1e-9)
    np.testing.assert_allclose(after.imbalance, before.imbalance, rtol=1e-9)


def assignments(problem):
    """Every placement of a layer without replicas: rank of each expert, ``(placements, experts)``."""
    ranks = range(problem.num_ranks)
    every = np.array(list(itertools.product(ranks, repeat=problem.num_experts)))
    counts = (every[:, :, None] == np.arange(problem.num_ranks)).sum(axis=1)
    return every[(counts <= problem.slots_per_rank).all(axis=1)]


single_problems = problems(max_experts=6, max_layers=1, max_ranks=3).filter(
    lambda p: p.num_replicas == 0 and p.num_ranks**p.num_experts <= 800
)


@given(single_problems, st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_named_programs_are_the_optimum_of_small_problems(problem, seed):
    rng = np.random.default_rng(seed)
    problem = dataclasses.replace(known(problem, seed), speeds=rng.uniform(0.5, 2, problem.num_ranks))
    where = assignments(problem)[:, :, None] == np.arange(problem.num_ranks)
    times = np.einsum("e,per->pr", problem.loads[0], where) / problem.relative_speeds

    fast = solve("speed_ilp", problem, **EXACT_EFFORT)
    found = evaluate(problem.loads, fast.placement, problem.relative_speeds).largest[0]
    assert found <= times.max(axis=1).min() * (1 + 1e-5) + 1e-9
    assert fast.lower_bound[0] <= times.max(axis=1).min() * (1 + 1e-9)

    limited = solve("migration_ilp", problem, max_moved_fraction=0.5, **EXACT_EFFORT)
    allowed = int(0.5 * problem.num_slots)
    moves = (where & ~problem.start.resident[0]).sum(axis=(1, 2))
    assert limited.placement.moved_experts(problem.start) <= allowed
    best = times[moves <= allowed].max(axis=1).min()
    found = evaluate(problem.loads, limited.placement, problem.relative_speeds).largest[0]
    assert abs(found - best) <= 1e-5 * max(best, 1e-9)


@given(single_problems, st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_robust_program_is_the_optimum_of_small_problems(problem, seed):
    problem = known(problem, seed)
    where = assignments(problem)[:, :, None] == np.arange(problem.num_ranks)
    best = np.einsum("ke,per->pkr", problem.batch_loads[:, 0], where).max(axis=2).mean(axis=1).min()
    robust = solve("robust_ilp", problem, sum_weight=0.0, **EXACT_EFFORT)
    found = evaluate(problem.batch_loads, robust.placement).largest.mean()
    assert abs(found - best) <= 1e-5 * max(best, 1e-9)


@given(st.integers(2, 3), st.integers(1, 2), st.integers(0, 2**32 - 1))
@settings(max_examples=15)
def test_affinity_lies_between_brute_force_and_its_bound(ranks, slots, seed):
    rng = np.random.default_rng(seed)
    pairs = rng.integers(0, 9, (1, ranks * slots, ranks * slots)).astype(float)
    loads = np.stack([pairs[0].sum(axis=1), pairs[0].sum(axis=0)])
    problem = Problem(loads, ranks, slots, transitions=pairs)
    where = (assignments(problem)[:, :, None] == np.arange(ranks)).astype(float)
    kept = np.einsum("per,ef,qfr->pq", where, pairs[0], where, optimize=True).max()
    assert kept <= spectral_bound(pairs, ranks)[0] * (1 + 1e-9)
    solution = solve("affinity", problem, slack_fraction=100.0, rounds=50)
    total = max(pairs.sum(), 1e-9)
    assert abs(same_rank_share(pairs, solution.placement) * total - kept) <= 1e-6 * total


@given(problems(), st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_descent_only_improves_and_keeps_its_cap(problem, seed):
    problem = known(problem, seed)
    rng = np.random.default_rng(seed)
    start = solve("greedy", problem).placement
    before = Copies.of(start, problem.capacity)
    assert before.placement() == start
    caps = evaluate(problem.loads, start).largest * 1.05
    distances = rng.random((problem.num_ranks, problem.num_ranks))
    after = block_descent(before, problem.loads, problem.transitions, distances, caps, sweeps=5).placement()
    cost = [transition_cost(problem.transitions, one, distances).sum() for one in (start, after)]
    assert cost[1] <= cost[0] * (1 + 1e-9)
    assert (evaluate(problem.loads, after).largest <= caps * (1 + 1e-8)).all()
    assert (after.copies == start.copies).all()
