"""Use of a trace for a model of another shape: explicit, and marked as assumed.

Only the number of layers can be changed without inventing choices. Another number of experts or
choices has no honest mapping token by token: fit the ``fitted_skew`` generator to the trace and
generate a new one.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moesim.errors import InputError
from moesim.traces.routing import RoutingTrace


def repeat_layers(trace: RoutingTrace, num_layers: int) -> RoutingTrace:
    """Trace with its layers repeated in order until there are ``num_layers``, or cut after that many.

    Skew, repetition and the relation of neighbouring layers stay as measured, except at the seam
    where the last layer meets the first again. The result's evidence is ``assumed``.

    Parameters
    ----------
    trace : RoutingTrace
        Measured trace.
    num_layers : int
        Wanted layers, numbered from 0. [-]

    Raises
    ------
    InputError
        ``num_layers < 1``.
    """
    if num_layers < 1:
        raise InputError.at("num_layers", num_layers, "a whole number >= 1")
    layers = np.arange(num_layers) % trace.num_layers
    weights = trace.gate_weights
    how = f"{trace.num_layers} layers of {trace.info.model} repeated to {num_layers}"
    info = replace(
        trace.info,
        layer_indices=tuple(range(num_layers)),
        source=f"{trace.info.source}; {how}".lstrip("; "),
        evidence="assumed",
    )
    return replace(
        trace,
        info=info,
        expert_ids=trace.expert_ids[:, layers],
        gate_weights=None if weights is None else weights[:, layers],
    )
