"""Where each expert lives, in how many copies, for the traffic at hand, and how far that is from optimal.

Everything here works on token counts and slots; it knows no seconds, bytes or machines. Methods
are one file each in :mod:`moesim.placement.methods`; all are judged by
:mod:`moesim.placement.evaluate` against :mod:`moesim.placement.bounds`.
"""

from moesim.placement.bounds import best_bound, lower_bounds
from moesim.placement.evaluate import Evaluation, evaluate, gap_fraction, rank_loads
from moesim.placement.placed import Placement
from moesim.placement.problem import Problem
from moesim.placement.registry import Method, Solution, placement_methods

__all__ = [
    "Evaluation",
    "Method",
    "Placement",
    "Problem",
    "Solution",
    "best_bound",
    "evaluate",
    "gap_fraction",
    "lower_bounds",
    "placement_methods",
    "rank_loads",
]
