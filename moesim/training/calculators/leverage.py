r"""Efficiency leverage of an MoE model over a dense one (Towards Greater Leverage, arXiv:2507.17702).

How many times the compute a dense model needs for the same loss:

.. math:: EL(A, G, C) = \hat A^{\alpha + \gamma \log^2 G + \beta \log G},\quad \alpha = a + d \log C

with the saturated activation ratio
:math:`1/\hat A = 1/(A + (1/A_{start} - 1/A_{max})^{-1}) + 1/A_{max}`. The printed coefficients give the
paper's headline (above 7 at 1e22 FLOP, 3.1 % active, granularity 12) only with the decadic logarithm of C and
the binary one of G, which are therefore used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LeverageLaw:
    """Coefficients of the joint law; defaults are the paper's."""

    a: float = 1.23
    d: float = -7.61e-2
    gamma: float = 1.67e-2
    beta: float = -1.17e-1
    start: float = 1.63e-2
    most: float = 5.28e16

    def leverage(self, activation: float, granularity: float, compute_flops: float) -> float:
        """Compute of an equally good dense model over the MoE's. [-]

        Parameters
        ----------
        activation : float
            Active over all experts, shared ones included; 1 is dense. [-]
        granularity : float
            Twice the model's width over an expert's inner width. [-]
        compute_flops : float
            Forward work of a token times the tokens trained on. [FLOP]

        Examples
        --------
        >>> round(LeverageLaw().leverage(0.031, 12, 1e22), 2)
        7.24
        """
        return float(self.saturated(activation) ** self.exponent(granularity, compute_flops))

    def saturated(self, activation: float) -> float:
        """Activation ratio as it counts. [-]"""
        shift = 1 / (1 / self.start - 1 / self.most)
        return 1 / (1 / (activation + shift) + 1 / self.most)

    def exponent(self, granularity: float, compute_flops: float) -> float:
        """Power of the saturated activation ratio; negative. [-]"""
        log_g = math.log2(granularity)
        return self.a + self.d * math.log10(compute_flops) + self.gamma * log_g**2 + self.beta * log_g

    @property
    def best_granularity(self) -> float:
        """Where leverage is largest, whatever the compute. [-]"""
        return float(2.0 ** (-self.beta / (2 * self.gamma)))


LEARNING_RATE = (1.1576, -0.1529)
BATCH_SIZE = (0.0694, 0.3644)
"""Factor and power of compute in the paper's laws of the best learning rate and batch."""


def best_learning_rate(compute_flops: float) -> float:
    """Peak learning rate. [-]"""
    factor, power = LEARNING_RATE
    return float(factor * compute_flops**power)


def best_batch_tokens(compute_flops: float) -> float:
    """Batch. [tokens]"""
    factor, power = BATCH_SIZE
    return float(factor * compute_flops**power)
