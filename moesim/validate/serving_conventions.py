"""How public serving runs were made, where their tables do not say: ``serving_conventions.yaml``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from moesim.files import read_tree, validated
from moesim.serving.engine import Hold
from moesim.validate.serving_points import Point

CONVENTIONS = Path(__file__).parent / "serving_conventions.yaml"

Range = tuple[int | None, int | None]
"""Least and largest; None: no bound."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Rule(_Strict):
    """Lengths of the requests of some rows.

    Attributes
    ----------
    source, engine, version : str
        Patterns of the rows.
    shortest : float
        Lengths are drawn uniformly from this share of the nominal one on. [-]
    evidence : str
    """

    source: str = "*"
    engine: str = "*"
    version: str = "*"
    shortest: float = Field(gt=0, le=1)
    evidence: str

    def fits(self, point: Point) -> bool:
        """Whether the rule is for this row."""
        given = (point.source, point.engine, point.engine_version)
        wanted = (self.source, self.engine, self.version)
        return all(fnmatchcase(name, pattern) for name, pattern in zip(given, wanted, strict=True))


class HoldOption(_Strict):
    """Fields of :class:`moesim.serving.engine.Hold`."""

    iterations: int = Field(gt=0)
    gathers: bool = False
    fill: float = Field(float("inf"), gt=0)


class Launch(_Strict):
    """Options that the engine of some rows was launched with.

    Attributes
    ----------
    sources, engines, models, devices, formats : tuple of str
        Patterns of the rows; of the format, that of the matrices.
    clients, tp : (int or None, int or None)
        Least and largest.
    lengths : (int, int) or None
        Nominal prompt and answer. [tokens]
    hold : HoldOption or None
        When it looks at new requests.
    batched_tokens, batched_lengths
        Token budget of an iteration: a number, and lengths that are added to it; 0: the engine's default.
    kv : str
        Format of the cache, where the row does not say; empty: the engine's default.
    evidence : str
    """

    sources: tuple[str, ...] = ("public benchmark*",)
    engines: tuple[str, ...]
    models: tuple[str, ...] = ("*",)
    devices: tuple[str, ...] = ("*",)
    formats: tuple[str, ...] = ("*",)
    clients: Range = (None, None)
    tp: Range = (None, None)
    lengths: tuple[int, int] | None = None
    hold: HoldOption | None = None
    batched_tokens: int = Field(0, ge=0)
    batched_lengths: tuple[Literal["prompt", "answer", "clients"], ...] = ()
    kv: str = ""
    evidence: str

    def fits(self, point: Point) -> bool:
        """Whether it is for this row."""
        if point.is_disaggregated or point.layout is None:
            return False
        patterns = (
            (point.source, self.sources),
            (point.engine, self.engines),
            (point.model, self.models),
            (point.device, self.devices),
            (point.gemm_dtype, self.formats),
        )
        return (
            all(any(fnmatchcase(name, one) for one in wanted) for name, wanted in patterns)
            and _inside(point.concurrency, self.clients)
            and _inside(point.layout.tp, self.tp)
            and self.lengths in {None, (point.input_tokens, point.output_tokens)}
        )

    def token_budget(self, point: Point) -> int | None:
        """New tokens of an iteration of one attention rank; None: the engine's default. [tokens]"""
        assert point.layout is not None  # it fits
        clients = -(-point.concurrency // point.layout.attention_dp)
        added = {"prompt": point.input_tokens, "answer": point.output_tokens, "clients": clients}
        return self.batched_tokens + sum(added[name] for name in self.batched_lengths) or None

    def engine_hold(self) -> Hold | None:
        """For the engine of the clock."""
        hold = self.hold
        return None if hold is None else Hold(hold.iterations, hold.gathers, hold.fill)


class Conventions(_Strict):
    """``serving_conventions.yaml``."""

    schema_version: Literal[1]
    requests_per_client: int = Field(ge=2)
    rules: tuple[Rule, ...] = Field(min_length=1)
    launches: tuple[Launch, ...] = ()

    def rule(self, point: Point) -> Rule:
        """Lengths of a row's requests."""
        return next(rule for rule in self.rules if rule.fits(point))

    def launch(self, point: Point) -> Launch | None:
        """Options of a row's engine; None: its defaults."""
        return next((launch for launch in self.launches if launch.fits(point)), None)


@lru_cache
def conventions() -> Conventions:
    """The shipped conventions."""
    return validated(Conventions, read_tree(CONVENTIONS))


def _inside(value: int, bounds: Sequence[int | None]) -> bool:
    least, most = bounds
    return (least is None or value >= least) and (most is None or value <= most)
