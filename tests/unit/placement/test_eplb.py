"""EPLB against its published example and against a slow reading of its description."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.placement import Placement, Problem, placement_methods

RNG = np.random.default_rng(0)
# example of the EPLB README (github.com/deepseek-ai/EPLB): 2 layers, 12 experts in 4 groups,
# 16 slots on 8 GPUs of 2 nodes
PUBLISHED_WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PUBLISHED_MAP = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


def test_published_example():
    problem = Problem(PUBLISHED_WEIGHT, 8, 2, ranks_per_node=4, num_groups=4)
    solution = placement_methods.build("eplb").solve(problem, RNG)
    assert solution.placement == Placement(PUBLISHED_MAP, 12, 8)
    assert solution.notes == ("hierarchical balancing",)


def slow_pack(weights, num_packs):
    """Equal packs, heaviest item first onto the lightest pack with room: lists of item numbers."""
    packs, size = [[] for _ in range(num_packs)], len(weights) // num_packs
    if size == 1:
        return [[i] for i in range(num_packs)]
    for item in sorted(range(len(weights)), key=lambda i: (-weights[i], i)):
        room = [p for p in range(num_packs) if len(packs[p]) < size]
        packs[min(room, key=lambda p: (sum(weights[i] for i in packs[p]), p))].append(item)
    return packs


def slow_eplb(weights, slots, groups, nodes, ranks):
    """One layer; experts of each rank as sorted lists."""
    per_group = len(weights) // groups
    members = [list(range(g * per_group, (g + 1) * per_group)) for g in range(groups)]
    result = []
    for node in slow_pack([sum(weights[e] for e in m) for m in members], nodes):
        experts = [e for g in node for e in members[g]]
        count = dict.fromkeys(experts, 1)
        physical = list(experts)
        while len(physical) < slots // nodes:
            hot = max(experts, key=lambda e: weights[e] / count[e])  # the first of equals
            count[hot] += 1
            physical.append(hot)
        packs = slow_pack([weights[e] / count[e] for e in physical], ranks // nodes)
        result += [sorted(physical[i] for i in pack) for pack in packs]
    return result


@pytest.mark.parametrize(
    ("experts", "slots", "groups", "nodes", "ranks"),
    [
        (12, 16, 4, 2, 8),
        (16, 24, 4, 4, 8),
        (24, 24, 8, 2, 4),
        (8, 8, 1, 1, 8),
        (32, 40, 1, 1, 8),
        (6, 12, 3, 1, 4),
    ],
)
def test_against_a_slow_reading(experts, slots, groups, nodes, ranks):
    # powers of two make sums exact, so that ties are ties in both readings
    weights = np.random.default_rng(experts + slots).integers(0, 64, (6, experts)).astype(float)
    problem = Problem(weights, ranks, slots // ranks, ranks_per_node=ranks // nodes, num_groups=groups)
    placed = placement_methods.build("eplb").solve(problem, RNG).placement
    for layer in range(6):
        got = placed.physical_to_logical[layer].reshape(ranks, -1).tolist()
        want = slow_eplb(weights[layer].tolist(), slots, groups, nodes, ranks)
        got_loads, want_loads = ([sorted(rank) for rank in side] for side in (got, want))
        assert got_loads == want_loads


def test_hierarchical_keeps_groups_on_nodes():
    weights = np.random.default_rng(5).random((4, 16))
    problem = Problem(weights, 8, 3, ranks_per_node=4, num_groups=4)
    placed = placement_methods.build("eplb").solve(problem, RNG).placement
    for layer in placed.resident:
        nodes_of_group = layer.reshape(4, 4, 2, 4).any(axis=(1, 3))
        assert (nodes_of_group.sum(axis=1) == 1).all()


def test_modes():
    weights = np.random.default_rng(6).random((2, 12))
    no_groups = Problem(weights, 4, 3, ranks_per_node=2)
    assert placement_methods.build("eplb").solve(no_groups, RNG).notes == ("global balancing",)
    with pytest.raises(InputError, match="a multiple of the 2 nodes"):
        placement_methods.build("eplb", {"mode": "hierarchical"}).solve(no_groups, RNG)
    grouped = Problem(weights, 4, 3, ranks_per_node=2, num_groups=4)
    free = placement_methods.build("eplb", {"mode": "global"}).solve(grouped, RNG)
    assert free.placement == placement_methods.build("eplb").solve(no_groups, RNG).placement
    with pytest.raises(InputError, match="mode"):
        placement_methods.build("eplb", {"mode": "magic"})
