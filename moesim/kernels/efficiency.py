"""Which fraction of the datasheet each operation family reaches, and how sure we are."""

from __future__ import annotations

from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from moesim.evidence import Grade
from moesim.files import find, read_tree, validated


class FamilyEfficiency(BaseModel):
    """Reached fractions of one operation family."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    compute_fraction: float = Field(gt=0, le=1)
    bandwidth_fraction: float = Field(gt=0, le=1)
    sigma: float = Field(ge=0)


class Efficiencies(BaseModel):
    """Every family's :class:`FamilyEfficiency` and the evidence for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    name: str
    grade: Grade
    families: dict[str, FamilyEfficiency]
    expert_tile_half_rows: float = Field(ge=0)
    sources: dict[str, str]


@lru_cache
def roofline_efficiencies() -> Efficiencies:
    """Efficiencies shipped in ``calibration/roofline/kernels.yaml``."""
    return validated(Efficiencies, read_tree(find("kernels", "calibration/roofline")))
