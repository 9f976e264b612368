"""What a device is, and the base of every description: frozen, validated, with sources.

Nothing here knows a model, a plan or a duration. Numbers are SI base units; peaks are dense;
bandwidths are per direction. Where each number comes from sits beside it under ``sources``.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from moesim.errors import InputError, did_you_mean
from moesim.evidence import GRADES

Positive: TypeAlias = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Count: TypeAlias = Annotated[int, Field(ge=1, strict=True)]

DeviceKind: TypeAlias = Literal["gpu", "cpu", "pim", "npu", "fpga"]

SOURCE_GRADES = ("datasheet", *(g for g in GRADES if g != "interpolated"))
"""First word of a source: ``datasheet | measured | fitted | roofline | assumed``."""

WIDER: dict[str, tuple[str, ...]] = {
    "nvfp4": ("mxfp4", "fp8", "bf16", "fp16", "tf32", "fp32"),
    "mxfp4": ("nvfp4", "fp8", "bf16", "fp16", "tf32", "fp32"),
    "int4": ("int8", "bf16", "fp16", "tf32", "fp32"),
    "fp8": ("bf16", "fp16", "tf32", "fp32"),
    "int8": ("bf16", "fp16", "tf32", "fp32"),
    "bf16": ("fp16", "tf32", "fp32"),
    "fp16": ("bf16", "tf32", "fp32"),
    "tf32": ("fp32",),
    "fp32": (),
}
"""Where arithmetic runs, in order, when a device lacks the datatype itself.

Narrow weights are widened before the multiplication; the two 4-bit and the two 16-bit floats stand
in for one another (same width, converted when the weights are loaded).
"""
DTYPES = tuple(WIDER)


class Described(BaseModel):
    """Base of all descriptions: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MemoryTier(Described):
    """One memory: how much, how fast, how far.

    Attributes
    ----------
    capacity_bytes : float
        Usable size. [bytes]
    bandwidth_bytes_per_s : float
        Sustained peak of reads. [bytes/s]
    latency_s : float
        From request to first byte. [s]
    """

    capacity_bytes: Positive
    bandwidth_bytes_per_s: Positive
    latency_s: NonNegative = 0.0


class Link(Described):
    """One attachment to a fabric.

    Attributes
    ----------
    bandwidth_bytes_per_s : float
        One direction, per attachment (device, NIC); both directions run at once. [bytes/s]
    latency_s : float
        End to end for a message of no bytes. [s]
    """

    bandwidth_bytes_per_s: Positive
    latency_s: NonNegative


class Sourced(Described):
    """A description with a name and the origin of its numbers.

    Attributes
    ----------
    schema_version : int
        Version of the file format.
    name : str
        Equal to the name of its file.
    sources : dict
        ``{dotted path of a field or of a part: 'grade: where it was found'}``.
    """

    schema_version: Literal[1] = 1
    name: str = Field(default="unnamed", min_length=1)
    sources: dict[str, str] = Field(default_factory=dict)

    @field_validator("sources")
    @classmethod
    def _graded(cls, sources: dict[str, str]) -> dict[str, str]:
        wrong = [f"{k}: {text!r}" for k, text in sources.items() if not _is_graded(text)]
        if wrong:
            accepted = f"'GRADE: text' with a grade of {', '.join(SOURCE_GRADES)}"
            message = f"{'; '.join(wrong)} does not begin with a grade; accepted: {accepted}"
            raise ValueError(message)
        return sources

    def source_of(self, path: str) -> str:
        """Source text of the field at a dotted path: the most specific entry that covers it, else empty."""
        return source_in(self.sources, path)


def _is_graded(text: str) -> bool:
    grade, colon, rest = text.partition(":")
    return grade in SOURCE_GRADES and bool(colon and rest.strip())


def source_in(sources: dict[str, str], path: str) -> str:
    """Longest entry of ``sources`` that is ``path`` or a part that holds it, else an empty string."""
    parts = path.split(".")
    for stop in range(len(parts), 0, -1):
        text = sources.get(".".join(parts[:stop]))
        if text:
            return text
    return ""


class Device(Sourced):
    """Something that computes next to a memory: GPU, CPU socket, near-memory unit, NPU, FPGA.

    Attributes
    ----------
    peak_flops_per_s : dict
        ``{dtype: dense peak}`` of natively supported datatypes; one multiply-add is two. [FLOP/s]
    memory : dict
        ``{tier: MemoryTier}``; the first is the main memory.
    num_units : int
        SMs, CUs, cores or near-memory units. [-]
    clock_hz : float, optional
        Sustained boost clock behind the peaks. [1/s]
    l2_bytes : float, optional
        Last-level cache. [bytes]
    launch_s : float
        Smallest time between two kernels (inside a graph on a GPU, a parallel region on a CPU). [s]
    idle_w, busy_w : float
        Power when idle and under full load. [W]
    price_per_hour_usd : float, optional
        Rental price. [USD/h]
    area_mm2 : float, optional
        Silicon area. [mm2]
    vendor, architecture : str, optional
        Maker, and its name of the generation of designs (``hopper``): what runs the same kernels. Fits are
        moved within a generation first, never to another maker's device.
    host_memory_of : str, optional
        Kind ``pim`` only: name of the device whose memory it works in.
    """

    kind: DeviceKind
    vendor: str | None = None
    architecture: str | None = None
    peak_flops_per_s: dict[str, Positive] = Field(min_length=1)
    memory: dict[str, MemoryTier] = Field(min_length=1)
    num_units: Count
    clock_hz: Positive | None = None
    l2_bytes: Positive | None = None
    launch_s: NonNegative
    idle_w: NonNegative
    busy_w: Positive
    price_per_hour_usd: NonNegative | None = None
    area_mm2: Positive | None = None
    host_memory_of: str | None = None

    @field_validator("peak_flops_per_s")
    @classmethod
    def _known_dtypes(cls, peaks: dict[str, float]) -> dict[str, float]:
        for dtype in peaks:
            if dtype not in WIDER:
                message = (
                    f"unknown dtype {dtype!r}{did_you_mean(dtype, DTYPES)}; accepted: {', '.join(DTYPES)}"
                )
                raise ValueError(message)
        return peaks

    @model_validator(mode="after")
    def _consistent(self) -> Device:
        if self.busy_w < self.idle_w:
            message = f"busy_w={self.busy_w:g} is below idle_w={self.idle_w:g}"
            raise ValueError(message)
        if self.host_memory_of is not None and self.kind != "pim":
            message = f"host_memory_of is for kind pim; kind is {self.kind}"
            raise ValueError(message)
        return self

    @property
    def main_memory(self) -> MemoryTier:
        """First listed memory tier."""
        return next(iter(self.memory.values()))

    def compute_dtype(self, dtype: str) -> str:
        """Datatype the arithmetic runs in for operands stored as ``dtype``.

        Raises
        ------
        InputError
            Unknown datatype, or neither it nor a wider one is supported.
        """
        if dtype not in WIDER:
            raise InputError.at("dtype", dtype, ", ".join(DTYPES))
        for candidate in (dtype, *WIDER[dtype]):
            if candidate in self.peak_flops_per_s:
                return candidate
        supported = ", ".join(self.peak_flops_per_s)
        raise InputError.at("dtype", dtype, f"what {self.name} computes, {supported}, or a narrower one")

    def dense_peak_flops_per_s(self, dtype: str) -> float:
        """Dense peak for operands stored as ``dtype``, in FLOP/s; see :meth:`compute_dtype`."""
        return self.peak_flops_per_s[self.compute_dtype(dtype)]
