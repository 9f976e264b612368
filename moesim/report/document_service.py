"""What a stored run of a service must hold so that it can be drawn."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from moesim.report.document_parts import Amount, Part, check_lengths

Curve = Annotated[list[Amount], Field(min_length=2)]


class ServiceInstance(Part):
    """Batch of one instance over time."""

    role: str
    running: list[Amount]


class ServiceChange(Part):
    """Something that happened to an instance."""

    at_s: Amount
    label: str


class Service(Part):
    """Requests of a service and what happened over time."""

    latency_curves: dict[Literal["ttft_s", "tpot_s", "e2e_latency_s"], Curve]
    objectives: dict[str, Amount]
    bin_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    output_tokens_per_s: list[Amount]
    prompt_tokens_per_s: list[Amount]
    running: list[Amount]
    waiting: list[Amount]
    kv_use_fraction: list[Amount]
    preemptions: list[Amount]
    instances: Annotated[list[ServiceInstance], Field(min_length=1)]
    expert_imbalance: list[Amount] | None = None
    changes: list[ServiceChange] = []

    @model_validator(mode="after")
    def _one_clock(self) -> Self:
        for name in (
            "output_tokens_per_s",
            "prompt_tokens_per_s",
            "waiting",
            "kv_use_fraction",
            "preemptions",
        ):
            check_lengths(self.running, getattr(self, name))
        if not self.running:
            msg = "got no time at all; accepted: at least one bin"
            raise ValueError(msg)
        return self
