"""What a trace is of: model, experts, layers, source. Values only, no arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.errors import Problem
from moesim.evidence import Grade

PREFILL, DECODE = 0, 1
"""Values of a trace's ``phase``."""
PHASES = ("prefill", "decode")
MAX_EXPERTS = 65_535


@dataclass(frozen=True, slots=True)
class TraceInfo:
    """What a trace is of, and where it came from.

    Attributes
    ----------
    model : str
        Name of the model whose router chose.
    num_experts : int
        Routed experts a layer; ids are below it. [-]
    layer_indices : tuple of int
        Model layer number of each traced layer, increasing (dense layers are absent).
    source : str
        Who recorded it, how, from which text.
    domains : tuple of str
        Names of the kinds of text.
    date : str
        Date given by whoever made the trace; free text.
    evidence : str
        ``measured`` for a real router, ``assumed`` for a generated or transformed trace.
    """

    model: str
    num_experts: int
    layer_indices: tuple[int, ...]
    source: str = ""
    domains: tuple[str, ...] = ("all",)
    date: str = ""
    evidence: Grade = "measured"

    @property
    def num_layers(self) -> int:
        """Traced layers. [-]"""
        return len(self.layer_indices)


def empty_slot(dtype: np.dtype[Any]) -> int:
    """Largest value of an unsigned id type: the mark of an empty slot."""
    return int(np.iinfo(dtype).max)


def id_dtype(num_experts: int) -> type[np.uint8] | type[np.uint16]:
    """Smallest id type whose empty mark is not an expert."""
    return np.uint8 if num_experts <= np.iinfo(np.uint8).max else np.uint16


def info_problems(info: TraceInfo) -> list[Problem]:
    """Values of the description that cannot be right."""
    problems = []
    layers = info.layer_indices
    if not layers or layers[0] < 0 or any(b <= a for a, b in zip(layers, layers[1:], strict=False)):
        problems.append(
            Problem("layer_indices", f"got {list(layers)[:8]}; accepted: increasing numbers >= 0")
        )
    if not 1 <= info.num_experts <= MAX_EXPERTS:
        problems.append(Problem("num_experts", f"got {info.num_experts}; accepted: 1 to {MAX_EXPERTS}"))
    if not info.domains or len(set(info.domains)) != len(info.domains) or len(info.domains) > 255:
        problems.append(
            Problem("domains", f"got {list(info.domains)[:8]}; accepted: 1 to 255 different names")
        )
    return problems
