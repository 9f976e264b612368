"""DeepSeek's expert-parallelism load balancer, hierarchical and global."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from moesim.errors import InputError
from moesim.placement.packing import pack, replicate
from moesim.placement.placed import Ints, Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Solution, placement_methods


@placement_methods.register("eplb")
@dataclass(frozen=True)
class Eplb:
    """EPLB: groups to nodes, replicas inside nodes, copies to ranks; each step heaviest first.

    Parameters
    ----------
    mode : {'auto', 'hierarchical', 'global'}
        ``auto`` is hierarchical when the problem has groups and nodes and the nodes divide the
        groups (as EPLB itself decides), else global: one group, one node.

    References
    ----------
    .. [1] DeepSeek-AI, "Expert Parallelism Load Balancer (EPLB)," 2025,
       github.com/deepseek-ai/EPLB; DeepSeek-V3 Technical Report, arXiv:2412.19437, section 3.4.
    """

    mode: Literal["auto", "hierarchical", "global"] = "auto"

    def solve(self, problem: Problem, rng: np.random.Generator) -> Solution:
        """Deterministic: ties go to the lower expert and the lower rank."""
        problem.check_equal_slots("eplb")
        hierarchical = is_hierarchical(problem, self.mode)
        experts = eplb_map(problem, hierarchical=hierarchical)
        notes = (f"{'hierarchical' if hierarchical else 'global'} balancing",)
        return Solution(Placement(experts, problem.num_experts, problem.num_ranks), notes=notes)


def is_hierarchical(problem: Problem, mode: str = "auto") -> bool:
    """Whether EPLB keeps expert groups on nodes.

    Raises
    ------
    InputError
        ``mode='hierarchical'`` of a problem whose groups do not spread evenly over nodes.
    """
    possible = (
        problem.num_groups is not None
        and problem.num_groups % problem.num_nodes == 0
        and problem.num_slots % problem.num_nodes == 0
    )
    if mode == "hierarchical" and not possible:
        accepted = f"a multiple of the {problem.num_nodes} nodes for hierarchical balancing"
        raise InputError.at("num_groups", problem.num_groups, accepted)
    return possible and mode != "global"


def eplb_map(problem: Problem, *, hierarchical: bool) -> Ints:
    """Expert in each slot, ``(layers, slots)``.

    Layers and nodes are handled together: after the groups have been packed, every node of every
    layer is a problem of its own with ``experts / nodes`` experts.
    """
    layers, experts = problem.loads.shape
    nodes = problem.num_nodes if hierarchical else 1
    groups = problem.num_groups if hierarchical and problem.num_groups else 1
    group_experts = experts // groups

    group_loads = problem.loads.reshape(layers, groups, group_experts).sum(axis=-1)
    group_order = _identity_if_single(group_loads, nodes)
    by_node = group_order[:, :, None] * group_experts + np.arange(group_experts)
    node_experts = by_node.reshape(layers, experts)

    loads = np.take_along_axis(problem.loads, node_experts, axis=1).reshape(layers * nodes, experts // nodes)
    items, copies = replicate(loads, problem.num_slots // nodes)
    weights = np.take_along_axis(loads / copies, items, axis=1)
    places = _identity_if_single(weights, problem.num_ranks // nodes)
    local = np.take_along_axis(items, places, axis=1).reshape(layers, nodes, -1)
    first = np.arange(nodes)[:, None] * (experts // nodes)
    return np.take_along_axis(node_experts, (local + first).reshape(layers, -1), axis=1)


def _identity_if_single(weights: np.ndarray[tuple[int, ...], np.dtype[np.float64]], num_packs: int) -> Ints:
    """Packing, except that packs of one item keep the order of the items."""
    rows, items = weights.shape
    if items == num_packs:
        return np.tile(np.arange(items), (rows, 1))
    return pack(weights, num_packs)
