"""Work of a training step by a stated formula, for TFLOP/s and MFU."""

from __future__ import annotations

from moesim.model.layer_ops import forward_flops_per_token
from moesim.model.spec import ModelSpec

BACKWARD_OVER_FORWARD = 2.0
"""A gradient of the input and one of the weights, each as much work as the forward product."""


def train_flops_per_token(model: ModelSpec, sequence_length: int, *, mtp: bool = False) -> float:
    """Work of one token in forward and backward, nothing recomputed. [FLOP]

    Causal attention counts the pairs it needs (half a square), as Megatron-Core does. A multi-token
    prediction module counts as its layer, its projection and the head.
    """
    forward = forward_flops_per_token(model, sequence_length)
    if mtp and model.mtp_layer is not None:
        forward += _mtp_flops(model, sequence_length)
    return forward * (1.0 + BACKWARD_OVER_FORWARD)


def _mtp_flops(model: ModelSpec, sequence_length: int) -> float:
    layer = model.mtp_layer
    assert layer is not None
    layer_and_head = forward_flops_per_token(model.with_layers([layer]), sequence_length)
    return layer_and_head + 2.0 * 2 * model.hidden_size * model.hidden_size
