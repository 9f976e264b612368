"""What a run answers, as values and as the document that ``--json``, ``run.json`` and reports share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from moesim import __version__
from moesim.files import to_json
from moesim.metrics.breakdown import Share

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class Metric:
    """One reported number.

    Attributes
    ----------
    value : float
        Median estimate.
    unit : str
        Unit name: ``s``, ``bytes``, ``tokens_per_s``, ``fraction``, ``ratio``, ``count``...
    low, high : float or None
        80 % band from calibration errors; None for a number that no duration enters.
    scatter_low, scatter_high : float or None
        80 % range over routed batches: run-to-run scatter, kept apart from the band.
    """

    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    scatter_low: float | None = None
    scatter_high: float | None = None

    def document(self) -> dict[str, Any]:
        """Plain form without absent fields."""
        return {k: v for k, v in asdict(self).items() if v is not None}


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What one changed knob does to the headline metric.

    Attributes
    ----------
    knob : str
        Dotted path of the scenario, or a word for what no single field holds.
    label : str
        What was done to it.
    metric : str
        The headline metric.
    value, change_fraction : float
        Its new value, and the relative change.
    """

    knob: str
    label: str
    metric: str
    value: float
    change_fraction: float


@dataclass(frozen=True)
class Result:
    """Everything a run found out.

    Attributes
    ----------
    title, answer, limiter : str
        Sentences for the reader.
    headline : str
        Name of the metric that answers the question.
    metrics : dict of Metric
    breakdown : list of Share
        Seconds by operation along the critical path of the median routed batch.
    evidence : dict
        Share of that time by evidence grade.
    sensitivity : list of Sensitivity
        Largest effect first.
    memory, views : dict
        Plain data for reports.
    sources : list
        Every described number that was used, with grade and source.
    inputs : list
        Files read, with SHA-256.
    warnings : list of str
    """

    command: str
    scenario_tree: Mapping[str, Any]
    title: str
    answer: str
    limiter: str
    headline: str
    metrics: Mapping[str, Metric]
    breakdown: Sequence[Share]
    evidence: Mapping[str, float]
    sensitivity: Sequence[Sensitivity] = ()
    memory: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Any] = field(default_factory=dict)
    sources: Sequence[Mapping[str, Any]] = ()
    inputs: Sequence[Mapping[str, str]] = ()
    warnings: Sequence[str] = ()

    def document(self, *, with_views: bool = True) -> dict[str, Any]:
        """The output contract's document; deterministic, without any measured wall time."""
        document = {
            "schema_version": SCHEMA_VERSION,
            "moesim_version": __version__,
            "command": self.command,
            "scenario_hash": scenario_hash(self.scenario_tree),
            "title": self.title,
            "question": self.scenario_tree["question"],
            "answer": self.answer,
            "headline": self.headline,
            "metrics": {name: metric.document() for name, metric in self.metrics.items()},
            "breakdown": [asdict(share) for share in self.breakdown],
            "evidence": dict(self.evidence),
            "limiter": self.limiter,
            "sensitivity": [asdict(s) for s in self.sensitivity],
            "memory": dict(self.memory),
            "warnings": list(self.warnings),
            "inputs": [dict(i) for i in self.inputs],
        }
        if with_views:
            document |= {
                "views": dict(self.views),
                "sources": [dict(s) for s in self.sources],
                "scenario": dict(self.scenario_tree),
            }
        return document


def scenario_hash(tree: Mapping[str, Any]) -> str:
    """SHA-256 of the resolved scenario's canonical JSON: equal for equal questions."""
    return hashlib.sha256(to_json(tree).encode()).hexdigest()[:16]
