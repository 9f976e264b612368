"""Traffic of others on the links of a step: its section in a scenario."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.units import GB

HOST = "host"


class BackgroundFlow(BaseModel):
    """Transfers that run beside the step, again and again, on the same links."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["pairs", "all_reduce", "all_to_all"] = Field(
        "pairs",
        description="pairs: the first source to the first destination and so on, each on its own; "
        "all_reduce: a ring over the sources; all_to_all: every source to all others",
    )
    source: str = Field(
        description="ranks of the cluster, such as 16-31 or 0,8, also beyond those of the plan; or host: the "
        "memory of each destination's node"
    )
    destination: str = Field(
        "", description="of pairs: as many ranks; or host: the memory of each source's node"
    )
    bytes: float = Field(
        GB,
        gt=0,
        description="of a pair each time, in the buffer of a rank (all_reduce), sent by a rank (all_to_all)",
    )
    bytes_per_s: float | None = Field(
        None, gt=0, description="most that a transfer uses of a link; default: what its links carry"
    )
    pause_s: float = Field(0.0, ge=0, description="between the end of a transfer and the start of the next")
    start_s: float = Field(0.0, ge=0, description="part of the pause that comes first, at most all of it")

    @model_validator(mode="after")
    def _complete(self) -> BackgroundFlow:
        if (self.kind == "pairs") != bool(self.destination):
            message = f"kind {self.kind}: accepted: {'a' if self.kind == 'pairs' else 'no'} destination"
            raise ValueError(message)
        if HOST in (self.source, self.destination) and self.kind != "pairs":
            message = f"kind {self.kind} is among ranks; accepted with host: pairs"
            raise ValueError(message)
        if self.source == self.destination == HOST:
            raise ValueError("source and destination are both host; accepted: ranks for one of them")
        if self.start_s > self.pause_s:
            message = (
                f"start_s={self.start_s:g} is more than pause_s={self.pause_s:g}; accepted: at most that"
            )
            raise ValueError(message)
        return self
