"""What a step's seconds mean: tokens and work a second of a device, and of its peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from moesim.kernels.cost import compute_dtype
from moesim.model import ModelSpec
from moesim.scenario.schema import Scenario
from moesim.training.formulas import train_flops_per_token

Seconds = TypeVar("Seconds", float, NDArray[np.float64])


@dataclass(frozen=True, slots=True)
class Rates:
    """Turns seconds of a step into rates.

    Attributes
    ----------
    tokens : int
        Of a step. [tokens]
    devices : int
    flops_per_token : float
        By :func:`~moesim.training.formulas.train_flops_per_token`. [FLOP]
    peak_flops_per_s : float
        Of a device in the format in which most of the model multiplies; bf16's for formats that are only
        stored. [FLOP/s]
    """

    tokens: int
    devices: int
    flops_per_token: float
    peak_flops_per_s: float

    @classmethod
    def of(cls, scenario: Scenario, model: ModelSpec, num_devices: int) -> Rates:
        """Rates of a scenario's steps."""
        section, dtypes, device = scenario.training, scenario.dtypes, scenario.cluster.node.device
        stored = dtypes.experts if model.num_experts else dtypes.weights
        return cls(
            section.global_batch_size * section.sequence_length,
            num_devices,
            train_flops_per_token(model, section.sequence_length, mtp=section.mtp),
            device.dense_peak_flops_per_s(compute_dtype(stored, dtypes.activations, device)),
        )

    def tokens_per_s_per_device(self, seconds: Seconds) -> Seconds:
        """Tokens that a device passes. [tokens/s]"""
        return self.tokens / seconds / self.devices

    def flops_per_s_per_device(self, seconds: Seconds) -> Seconds:
        """Model's work that a device does. [FLOP/s]"""
        return self.flops_per_token * self.tokens / seconds / self.devices

    def mfu_fraction(self, seconds: Seconds) -> Seconds:
        """That over its peak. [-]"""
        return self.flops_per_s_per_device(seconds) / self.peak_flops_per_s
