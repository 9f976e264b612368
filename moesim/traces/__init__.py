"""What the router chose: traces of experts per token, their files, statistics and generators.

Traces know experts, not ranks: any placement may be tried on one trace. Nothing here imports a
deep-learning framework, except :mod:`moesim.traces.capture` inside its functions.
"""

from moesim.traces.description import DECODE, PREFILL, TraceInfo
from moesim.traces.fit import fit_skew
from moesim.traces.retarget import repeat_layers
from moesim.traces.routing import ExpertCounts, RoutingTrace, check_against, count_experts
from moesim.traces.statistics import TraceStatistics, summarize
from moesim.traces.store import read_counts, read_trace, write_counts, write_trace

__all__ = [
    "DECODE",
    "PREFILL",
    "ExpertCounts",
    "RoutingTrace",
    "TraceInfo",
    "TraceStatistics",
    "check_against",
    "fit_skew",
    "count_experts",
    "read_counts",
    "read_trace",
    "repeat_layers",
    "summarize",
    "write_counts",
    "write_trace",
]
