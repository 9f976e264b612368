"""Published training beside ours: steps, pairs of them, Parallel Folding, papers from their own constants."""

from __future__ import annotations

from moesim.validate.claims import Claim, Progress, published
from moesim.validate.training_sets.comet import comet_claims
from moesim.validate.training_sets.fsmoe import fsmoe_claims
from moesim.validate.training_sets.papers import deepspeed_claims, flashmoe_claims, hecate_claims, lsh_claims
from moesim.validate.training_sets.steps import folding_claims, pair_claims, step_claims
from moesim.validate.training_sets.tutel import tutel_claims


def claims(seed: int = 0, progress: Progress | None = None) -> list[Claim]:
    """Steps first, then what papers say of single layers."""
    data = published("training").data
    tell = progress or (lambda name: None)
    found = [*step_claims(tell), *pair_claims(tell), *folding_claims(tell)]
    for name, of in (
        ("FSMoE", fsmoe_claims),
        ("Tutel", tutel_claims),
        ("Comet", comet_claims),
        ("FlashMoE", flashmoe_claims),
        ("LSH-MoE", lsh_claims),
        ("DeepSpeed-MoE", deepspeed_claims),
    ):
        tell(name)
        found += of(data)
    tell("Hecate")
    return found + hecate_claims(data, seed)
