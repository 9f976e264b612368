"""Work of a training pass as DeepSeekMoE counts it (arXiv:2401.06066).

The paper prints TFLOP for 2K or 4K tokens and no formula. This one gives its cells: every layer is a standard
one (four square attention matrices whatever the key/value heads, feed-forward parts in units of
``8 hidden^2`` parameters), attention sees the whole sequence, routers are free, backward is twice forward.
"""

from __future__ import annotations

from dataclasses import dataclass

PASSES = 3.0
"""Forward, and a backward pass of twice its work."""

STANDARD_WIDTH_RATIO = 8 / 3
"""Inner width of a standard gated feed-forward part over the model's width."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the count depends on.

    Attributes
    ----------
    hidden, num_layers, vocab_size : int
        [-]
    sequence_length : int
        Tokens of a sequence; the count is for one of them. [tokens]
    active_ffn : float
        Feed-forward work of a token over that of a standard part: 1 dense or top-1, 2 for top-2 of full size
        or for 8 of a quarter. [-]
    """

    hidden: int
    num_layers: int
    vocab_size: int
    sequence_length: int
    active_ffn: float = 1.0


def active_ffn(hidden: int, expert_width: int, experts_per_token: int) -> float:
    """Feed-forward work of experts of a given width, in standard parts. [-]"""
    return experts_per_token * expert_width / (STANDARD_WIDTH_RATIO * hidden)


def sequence_flops(shape: Shape) -> float:
    """Work of one sequence, forward and backward. [FLOP]

    Examples
    --------
    LLaMA2-7B, 4K tokens: the paper prints 187.9 TFLOP.

    >>> round(sequence_flops(Shape(4096, 32, 32000, 4096)) / 1e12, 1)
    187.9
    """
    h, s = shape.hidden, shape.sequence_length
    layer = (8 + 16 * shape.active_ffn) * h * h + 4 * s * h
    token = shape.num_layers * layer + 2 * h * shape.vocab_size
    return PASSES * token * s
