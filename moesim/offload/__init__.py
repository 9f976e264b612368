"""Experts that do not fit: tiers, copies, prefetch, and who computes."""

from moesim.offload.batchers import batchers
from moesim.offload.costs import Costs
from moesim.offload.driver import OffloadRun, simulate
from moesim.offload.executors import executors
from moesim.offload.prefetchers import prefetchers
from moesim.offload.state import Offload

__all__ = ["Costs", "Offload", "OffloadRun", "batchers", "executors", "prefetchers", "simulate"]
