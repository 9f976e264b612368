"""Published claims about experts that do not fit, beside ours."""

from __future__ import annotations

from moesim.validate.claims import Claim, Progress, published
from moesim.validate.offload_sets.exact import exact_claims
from moesim.validate.offload_sets.hits import hit_claims
from moesim.validate.offload_sets.measured import measured_claims
from moesim.validate.offload_sets.speedups import speedup_claims
from moesim.validate.offload_sets.tokens import token_claims


def claims(seed: int = 0, progress: Progress | None = None) -> list[Claim]:
    """Formulas first, then hit rates, speed-ups and absolute rates."""
    data = published("offload").data
    tell = progress or (lambda _: None)
    tell("sizes, balance points, saturation")
    found = exact_claims(data, seed)
    found += measured_claims(seed)
    found += hit_claims(data, seed, tell)
    return [*found, *speedup_claims(data, seed, tell), *token_claims(data, seed, tell)]
