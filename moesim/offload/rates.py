"""Rates that hosts and links reach, as described data."""

from __future__ import annotations

from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from moesim.errors import InputError
from moesim.files import find, read_tree, validated


class Rates(BaseModel):
    """Shares of datasheet peaks and fixed times; see the file for meaning and sources."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int
    name: str
    cpu_bandwidth_fraction: float = Field(gt=0, le=1)
    cpu_tile_fraction: float = Field(gt=0, le=1)
    cpu_vector_fraction: float = Field(gt=0, le=1)
    cpu_vector_max_tokens: int = Field(ge=0)
    cpu_weights_per_cycle: dict[str, float]
    cpu_expert_s: float = Field(ge=0)
    handover_s: float = Field(ge=0)
    handover_thread_s: float = Field(ge=0)
    remote_fraction: float = Field(gt=0, le=1)
    pageable_fraction: float = Field(gt=0, le=1)
    cores_to_saturate_fraction: float = Field(gt=0, le=1)
    sigma: float = Field(ge=0)
    programs: dict[str, dict[str, float]]
    sources: dict[str, str]


DEFAULT_PROGRAM = "kt-kernel"


@lru_cache(maxsize=8)
def hybrid_rates(program: str = DEFAULT_PROGRAM) -> Rates:
    """The shipped file ``calibration/roofline/hybrid.yaml``, with what ``program`` does otherwise.

    Raises
    ------
    InputError
        A program that the file does not describe.
    """
    rates = validated(Rates, read_tree(find("hybrid", "calibration", suffixes=(".yaml",))))
    if program not in rates.programs:
        raise InputError.at("executor.program", program, ", ".join(rates.programs))
    return rates.model_copy(update=rates.programs[program])
