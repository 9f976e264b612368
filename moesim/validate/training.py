"""Published training: papers from their own constants."""

from __future__ import annotations

from moesim.validate.claims import Claim, Progress, published
from moesim.validate.training_sets.fsmoe import fsmoe_claims


def claims(seed: int = 0, progress: Progress | None = None) -> list[Claim]:  # noqa: ARG001 - nothing random yet
    """Every paper's claims."""
    data = published("training").data
    tell = progress or (lambda name: None)
    tell("FSMoE")
    return fsmoe_claims(data)
