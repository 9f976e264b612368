"""What a stored run must hold so that it can be drawn: checked before any drawing starts."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    FiniteFloat,
    ValidationError,
    field_validator,
    model_validator,
)

from moesim.errors import InputError
from moesim.files import problems_of
from moesim.report.document_parts import Amount, Part, check_lengths
from moesim.report.document_service import Service

MAX_DEPTH = 32
"""Deeper trees are no scenario."""
Matrix = Annotated[list[list[Amount]], Field(min_length=1)]


class Metric(Part):
    """A reported number and its ranges."""

    value: FiniteFloat
    unit: str
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None
    scatter_low: FiniteFloat | None = None
    scatter_high: FiniteFloat | None = None


class Share(Part):
    """Row of the time breakdown."""

    name: str
    kind: str
    seconds: Amount
    fraction: Amount
    evidence: str
    sigma: Amount


class Change(Part):
    """Row of the sensitivity."""

    label: str
    value: FiniteFloat
    change_fraction: FiniteFloat


class RankMemory(Part):
    """Ledger of ranks that hold the same."""

    ranks: str
    parts: dict[str, Amount]
    free_bytes: FiniteFloat


class Memory(Part):
    """Ledgers against the capacity; both absent when nothing was counted."""

    capacity_bytes: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    per_rank: list[RankMemory] = []


class LayerTable(Part):
    """Tokens of every layer, ``(layer, expert or rank)``."""

    tokens: Matrix

    @model_validator(mode="after")
    def _rectangular(self) -> Self:
        lengths = {len(row) for row in self.tokens}
        if len(lengths) != 1 or lengths == {0}:
            msg = f"rows of tokens have lengths {sorted(lengths)}; accepted: one length, at least 1"
            raise ValueError(msg)
        return self


class ExpertLoad(LayerTable):
    """Tokens of every expert."""

    layers: list[int]

    @model_validator(mode="after")
    def _one_row_a_layer(self) -> Self:
        check_lengths(self.layers, self.tokens)
        return self


class Variant(LayerTable):
    """Tokens of every rank under one placement."""

    label: str


class RankLoad(Part):
    """Rank loads under some placements."""

    layers: list[int]
    variants: Annotated[list[Variant], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_row_a_layer(self) -> Self:
        for variant in self.variants:
            check_lengths(self.layers, variant.tokens)
        return self


class Traffic(Part):
    """Bytes between ranks or nodes."""

    scope: str
    scale_up: Matrix
    scale_out: Matrix

    @model_validator(mode="after")
    def _square(self) -> Self:
        size = len(self.scale_up)
        if any(len(row) != size for pairs in (self.scale_up, self.scale_out) for row in (pairs[0], *pairs)):
            msg = "scale_up and scale_out are not square; accepted: (source, target) of one size"
            raise ValueError(msg)
        check_lengths(self.scale_up, self.scale_out)
        return self


class LinkBlock(Part):
    """Seconds of every link of one kind."""

    label: str
    seconds: Annotated[list[Amount], Field(min_length=1)]
    sound_seconds: list[Amount] | None = None

    @model_validator(mode="after")
    def _same_links(self) -> Self:
        if self.sound_seconds is not None:
            check_lengths(self.seconds, self.sound_seconds)
        return self


class BusyLink(Part):
    """A link and what it carries."""

    link: str
    seconds: Amount


class Links(Part):
    """How long links are busy."""

    busiest: Annotated[list[BusyLink], Field(min_length=1)]
    sound_busiest_s: Amount | None = None
    blocks: list[LinkBlock]


class CrowdBlock(Part):
    """Shares of the rate of every link of one kind that the step and that others used."""

    label: str
    own: Annotated[list[Amount], Field(min_length=1)]
    others: Annotated[list[Amount], Field(min_length=1)]


class HeldBack(Part):
    """A link and the time that the step waited for it."""

    link: str
    lost_s: Amount


class Crowd(Part):
    """A step beside the traffic of others."""

    alone_s: Annotated[Amount, Field(gt=0)]
    beside_s: Amount
    held_back: list[HeldBack]
    blocks: list[CrowdBlock]


class Placement(Part):
    """Row of the placement comparison."""

    label: str
    objective: Amount
    lower_bound: Amount
    gap_fraction: FiniteFloat
    imbalance_fit: Amount
    imbalance_held_out: Amount
    metrics: dict[str, Metric] | None = None


class Track(Part):
    """Spans of one stream of one rank: name, kind, layer, start and end."""

    rank: int
    stream: str
    spans: list[Annotated[list[Any], Field(min_length=5, max_length=5)]]

    @model_validator(mode="after")
    def _typed_spans(self) -> Self:
        for name, kind, layer, start_s, end_s in self.spans:
            words = isinstance(name, str) and isinstance(kind, str) and isinstance(layer, int | None)
            times = all(isinstance(at, int | float) and isfinite(at) for at in (start_s, end_s))
            if not words or not times:
                got = str([name, kind, layer, start_s, end_s])[:60]
                msg = f"got {got}; accepted: name, kind, layer, start, end"
                raise ValueError(msg)
        return self


class Timeline(Part):
    """Excerpt of the timeline."""

    start_s: FiniteFloat
    end_s: FiniteFloat
    rows: list[Track]


PASSES = ("F", "B", "W", "BW", "FB")
"""Kinds of passes of a pipeline."""

OF_A_SERVICE = ("good_fraction", "tokens_per_s_per_user", "output_tokens_per_s_per_device")
"""Metrics that pictures of a service state."""


class Pipeline(Part):
    """Passes: stage, pass, microbatch, chunk, microbatch and chunk of the backward beside it, start, end."""

    num_stages: Annotated[int, Field(gt=0)]
    num_chunks: Annotated[int, Field(gt=0)]
    num_microbatches: int
    end_s: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    spans: list[Annotated[list[Any], Field(min_length=8, max_length=8)]]

    @model_validator(mode="after")
    def _typed_spans(self) -> Self:
        for stage, kind, *whose, start_s, end_s in self.spans:
            places = all(type(number) is int for number in (stage, *whose))
            times = all(isinstance(at, int | float) and isfinite(at) for at in (start_s, end_s))
            known = kind in PASSES and 0 <= stage < self.num_stages and max(whose[1::2]) < self.num_chunks
            if not (places and times and known):
                got = str([stage, kind, *whose, start_s, end_s])[:60]
                msg = f"got {got}; accepted: stage, {'/'.join(PASSES)}, two microbatches and chunks, times"
                raise ValueError(msg)
        return self


class Views(Part):
    """What only some runs have."""

    serving: Service | None = None

    expert_load: ExpertLoad | None = None
    rank_load: RankLoad | None = None
    traffic: Traffic | None = None
    links: Links | None = None
    crowd: Crowd | None = None
    comparison: list[Placement] = []
    timeline: Timeline | None = None
    pipeline: Pipeline | None = None


class Source(Part):
    """Row of the table of sources."""

    path: str
    value: Any
    grade: str
    source: str


class InputFile(Part):
    """A file that the run read."""

    file: str
    sha256: str


class RunDocument(Part):
    """``run.json`` of ``moesim run``."""

    schema_version: Literal[1]
    moesim_version: str
    command: Literal["run"]
    scenario_hash: str
    title: str
    answer: str
    headline: str
    limiter: str
    metrics: dict[str, Metric]
    breakdown: list[Share]
    evidence: dict[str, Amount]
    sensitivity: list[Change] = []
    memory: Memory = Memory()
    warnings: list[str] = []
    views: Views
    sources: list[Source] = []
    scenario: dict[str, Any]
    inputs: list[InputFile] = []

    @field_validator("scenario")
    @classmethod
    def _shallow(cls, tree: dict[str, Any]) -> dict[str, Any]:
        level: list[Any] = [tree]
        for _ in range(MAX_DEPTH):
            level = [value for node in level if isinstance(node, dict) for value in node.values()]
        if level:
            msg = f"nested deeper than {MAX_DEPTH}"
            raise ValueError(msg)
        return tree

    @model_validator(mode="after")
    def _headline_exists(self) -> Self:
        rows = [row.metrics for row in self.views.comparison if row.metrics is not None]
        if any(self.headline not in metrics for metrics in (self.metrics, *rows)):
            msg = f"headline {self.headline!r} is not among the metrics"
            raise ValueError(msg)
        if self.views.serving is not None:
            curves = [f"{p}_{name}" for name in self.views.serving.latency_curves for p in ("p50", "p99")]
            for name in (*OF_A_SERVICE, *curves):
                if name not in self.metrics:
                    msg = f"metric {name!r} is missing beside the view of a service"
                    raise ValueError(msg)
        return self


def check_document(document: Any, source: str) -> Mapping[str, Any]:
    """``document``, after making sure that pages and figures can be drawn from it.

    Raises
    ------
    InputError
        Every problem at once, each with the path of the value.
    """
    try:
        RunDocument.model_validate(document)
    except ValidationError as error:
        raise InputError(problems_of(error, model=RunDocument), source=source) from None
    return document  # type: ignore[no-any-return]
