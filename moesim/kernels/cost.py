"""The seam between operations and seconds.

Three tiers answer the same protocol: measured tables, fitted physical models, and the datasheet
roofline. Everything above this room is written against :class:`KernelCost` only, and is tested with
:class:`FixedCost`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from moesim.evidence import Estimate, Grade, Seconds
from moesim.hardware.schema import Device
from moesim.kernels.efficiency import Efficiencies, roofline_efficiencies
from moesim.kernels.histogram import ExpertLoad
from moesim.kernels.roofline import grouped_gemm_s, roofline_s
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, GroupedExperts, MemoryBound, Op, Router

FAMILY: dict[type, str] = {
    Gemm: "gemm",
    AttentionPrefill: "attention_prefill",
    AttentionDecode: "attention_decode",
    MemoryBound: "elementwise",
    Router: "router",
    GroupedExperts: "moe",
}
"""Operations whose errors move together."""

EXPERT_LAUNCHES = 3
"""Kernels of a grouped expert block: up (and gate) GEMM, activation, down GEMM."""

_NARROW = {
    "fp8": "fp8",
    "fp8_block": "fp8",
    "mxfp8": "fp8",
    "int8": "int8",
    "nvfp4": "nvfp4",
    "mxfp4": "mxfp4",
}


class KernelCost(Protocol):
    """Seconds of operations on one device, vectorised over whatever axes the operation's counts have."""

    def op(self, op: Op) -> Estimate:
        """Duration of an operation that is its own description."""
        ...

    def experts(self, op: GroupedExperts, load: ExpertLoad) -> Estimate:
        """Duration of a grouped expert block for a histogram of tokens per expert."""
        ...

    def permutes(self, op: GroupedExperts) -> bool:
        """Whether that duration holds the gather of the experts' rows and the sum of their results."""
        ...

    def quantises(self, op: Gemm) -> bool:
        """Whether the duration of a product holds the cast of its inputs to the weights' format."""
        ...


def compute_dtype(weight_dtype: str, activation_dtype: str, device: Device) -> str:
    """Datatype in which a GEMM multiplies.

    The weights' own narrow type where the device has it (the activations are then quantised on the
    fly); otherwise weights are widened to the activations' type as they are loaded.
    """
    narrow = _NARROW.get(weight_dtype)
    return narrow if narrow in device.peak_flops_per_s else activation_dtype


@dataclass(frozen=True)
class RooflineCost:
    """Datasheet roofline with transferred efficiencies: the tier of last resort.

    Attributes
    ----------
    device : Device
        Peaks, main memory and launch cost.
    efficiencies : Efficiencies
        Reached fractions per family.
    """

    device: Device
    efficiencies: Efficiencies = field(default_factory=roofline_efficiencies)

    def op(self, op: Op) -> Estimate:
        """Duration by :func:`~moesim.kernels.roofline.roofline_s`, one launch."""
        family = FAMILY[type(op)]
        reached = self.efficiencies.families[family]
        seconds = roofline_s(
            op.flops,
            op.moved_bytes,
            flops_per_s=self._peak(op) * reached.compute_fraction,
            bandwidth_bytes_per_s=self._bandwidth(family),
            launch_s=self.device.launch_s,
        )
        return Estimate(seconds, family, self.efficiencies.grade, reached.sigma)

    def experts(self, op: GroupedExperts, load: ExpertLoad) -> Estimate:
        """Duration of the two grouped GEMMs and the activation between them.

        Only touched experts' weights are read; each expert's rows are padded to whole tiles.
        """
        reached = self.efficiencies.families["moe"]
        bandwidth = self._bandwidth("moe")
        dtype = compute_dtype(op.weight_dtype, op.activation_dtype, self.device)
        rates = {
            "flops_per_s": self.device.dense_peak_flops_per_s(dtype) * reached.compute_fraction,
            "bandwidth_bytes_per_s": bandwidth,
            "tile_half_rows": self.efficiencies.expert_tile_half_rows,
        }
        element = bytes_per_element(op.activation_dtype)
        weight = bytes_per_element(op.weight_dtype) * op.hidden * op.width
        up_width = op.num_up_matrices * op.width
        up_bytes = load.touched * weight * op.num_up_matrices + load.rows * (op.hidden + up_width) * element
        down_bytes = load.touched * weight + load.rows * (op.hidden + op.width) * element
        seconds = (
            grouped_gemm_s(load.padded_rows, up_bytes, up_width, op.hidden, **rates)
            + load.rows * (up_width + op.width) * element / bandwidth
            + grouped_gemm_s(load.padded_rows, down_bytes, op.hidden, op.width, **rates)
        )
        launched = np.where(load.rows > 0, seconds + EXPERT_LAUNCHES * self.device.launch_s, 0.0)
        return Estimate(launched, "moe", self.efficiencies.grade, reached.sigma)

    def permutes(self, op: GroupedExperts) -> bool:
        """No: the grouped products alone."""
        del op
        return False

    def quantises(self, op: Gemm) -> bool:
        """No: the product alone."""
        del op
        return False

    def _bandwidth(self, family: str) -> float:
        fraction = self.efficiencies.families[family].bandwidth_fraction
        return self.device.main_memory.bandwidth_bytes_per_s * fraction

    def _peak(self, op: Op) -> float:
        match op:
            case Gemm():
                dtype = compute_dtype(op.weight_dtype, op.activation_dtype, self.device)
            case AttentionPrefill() | AttentionDecode() | Router():
                dtype = op.activation_dtype
            case MemoryBound():
                dtype = "fp32"
        return self.device.dense_peak_flops_per_s(dtype)


@dataclass(frozen=True)
class FixedCost:
    """Every operation takes the same time wherever there is work: for tests of what is built on top.

    Attributes
    ----------
    seconds : float
        Duration of each operation. [s]
    grade, sigma
        Evidence it claims.
    """

    seconds: float = 1.0
    grade: Grade = "assumed"
    sigma: float = 0.0

    def op(self, op: Op) -> Estimate:
        """``seconds`` where the operation moves bytes."""
        return self._where(op.moved_bytes, FAMILY[type(op)])

    def experts(self, op: GroupedExperts, load: ExpertLoad) -> Estimate:
        """``seconds`` where an expert has a token."""
        return self._where(load.rows, FAMILY[type(op)])

    def permutes(self, op: GroupedExperts) -> bool:
        """No."""
        del op
        return False

    def quantises(self, op: Gemm) -> bool:
        """No."""
        del op
        return False

    def _where(self, amount: Seconds, family: str) -> Estimate:
        return Estimate(np.where(np.asarray(amount) > 0, self.seconds, 0.0), family, self.grade, self.sigma)
