"""Formats behind the one word by which a run or a repository names a quantised checkpoint."""

from __future__ import annotations

from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moesim.files import find, read_tree, validated
from moesim.model.dtypes import Dtypes

FILE, ROOM = "checkpoints", "engines"
WIDE = "bf16"
ANY = "*"


class Rule(BaseModel):
    """What checkpoints of some models hold.

    Attributes
    ----------
    models : tuple of str
        Patterns of bundled names.
    labels : dict
        ``{label: {part: format}}``; ``*`` for any label.
    source : str
        Where that is published.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    models: tuple[str, ...] = Field(min_length=1)
    labels: dict[str, dict[Literal["weights", "experts", "attention"], str]]
    source: str


class Rules(BaseModel):
    """``engines/checkpoints.yaml``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1]
    rules: tuple[Rule, ...]


def stored_formats(model: str, weights: str, experts: str, kv: str = WIDE) -> Dtypes:
    """Formats of a checkpoint.

    Parameters
    ----------
    model : str
        Bundled name; another gets what the labels say.
    weights, experts : str
        Labels of dense weights and of routed experts.
    kv : str
        Format of the cache.
    """
    for rule in _rules().rules:
        if not any(fnmatchcase(model, pattern) for pattern in rule.models):
            continue
        dense = rule.labels.get(weights, rule.labels.get(ANY))
        routed = rule.labels.get(experts, rule.labels.get(ANY))
        if dense is None and routed is None:
            continue
        dense, routed = dense or {}, routed or {}
        return Dtypes(
            weights=dense.get("weights", weights),
            experts=routed.get("experts", experts),
            kv=kv,
            attention=dense.get("attention", ""),
        )
    return Dtypes(weights=weights, experts=experts, kv=kv)


@lru_cache
def _rules() -> Rules:
    return validated(Rules, read_tree(find(FILE, ROOM, suffixes=(".yaml",))))
