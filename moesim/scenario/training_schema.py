"""The ``training`` section of a scenario."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class ScheduleSection(BaseModel):
    """Order of the passes: a registered schedule with its parameters."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    policy: str = Field("1f1b", description="registered schedule; other fields are its parameters")

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the schedule."""
        return dict(self.__pydantic_extra__ or {})


class ExpertOverlapSection(BaseModel):
    """How dispatch, experts and combine of a layer lie beside one another: a registered policy."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    policy: str = Field("none", description="registered expert overlap; other fields are its parameters")

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the policy."""
        return dict(self.__pydantic_extra__ or {})


class SplitSection(BaseModel):
    """Who helps with a batch's overloaded experts: a registered split that sends weights to helpers."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    policy: Literal["none", "llep", "hecate"] = Field(
        "none", description="split of a batch's tokens; other fields are its parameters"
    )

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the split."""
        return dict(self.__pydantic_extra__ or {})


class TrainingSection(BaseModel):
    """What one optimizer step works on, and how."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sequence_length: int = Field(4096, ge=1, description="tokens of a sequence")
    micro_batch_size: int = Field(1, ge=1, description="sequences of a microbatch in each replica")
    global_batch_size: int = Field(256, ge=1, description="sequences of a step")
    text_tokens: int | None = Field(
        None,
        ge=1,
        description="mean length of the texts that sequences are packed from, each with its own routing; "
        "default: a sequence is one text",
    )
    steered: bool = Field(
        False,
        description="biases of the gate keep loads even over batches (DeepSeek-V3): only texts are uneven",
    )
    schedule: ScheduleSection = ScheduleSection()
    overlap: ExpertOverlapSection = Field(
        ExpertOverlapSection(), description="what of an expert layer's exchanges runs under its experts"
    )
    split: SplitSection = Field(
        SplitSection(),
        description="ranks that help overloaded experts: weights sent, gradients returned",
    )
    recompute: tuple[str, ...] = Field(
        (), description="what the backward pass runs again: modules as Megatron-Core names them, or full"
    )
    recompute_layers: int | None = Field(
        None, ge=1, description="full: only the first layers of each chunk are run again; default: all"
    )
    sharding: str = Field("zero1", description="how states are kept over replicas")
    gradient_dtype: Literal["fp32", "bf16"] = Field(
        "fp32", description="format in which gradients are summed"
    )
    moment_dtype: Literal["fp32", "bf16"] = Field("fp32", description="format of the optimizer's moments")
    kept_inner_dtype: str = Field(
        "", description="format in which inputs of activation functions are kept; default: as computed"
    )
    optimizer_offload_fraction: float = Field(
        0.0, ge=0, le=1, description="share of the optimizer's states and update that lives on the host"
    )
    overlap_gradient_reduce: bool = Field(True, description="reduce gradients under the backward passes")
    overlap_parameter_gather: bool = Field(True, description="gather parameters under the forward passes")
    delayed_weight_gradient: bool = Field(
        False, description="weight gradients of the experts run beside the exchange that follows"
    )
    capacity_factor: float | None = Field(
        None, gt=0, description="most tokens of an expert over the mean; default: dropless"
    )
    mtp: bool = Field(False, description="train the multi-token prediction modules too")
    graphs: Literal["none", "partial", "full"] = Field(
        "none", description="captured graphs: of attention and router, or of the whole step"
    )
    host_reads_counts: bool = Field(
        True, description="a dropless dispatch makes the host wait for token counts"
    )
    fused_sinks: bool = Field(
        False,
        description="attention with learnt sinks in one kernel; Transformer Engine needs cuDNN 9.18 for it",
    )
    framework: str = Field("megatron_core", description="host costs: a profile of calibration/training")
    layout: Literal["even", "weighted"] = Field(
        "weighted", description="layers of each part: equal in number, or as equal in work as can be"
    )
    usd_per_device_hour: float | None = Field(None, gt=0, description="price of a device")
