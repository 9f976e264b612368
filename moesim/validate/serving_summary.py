"""Predictions of measured runs beside the measurements: errors, bands, groups, and conditions on them."""

from __future__ import annotations

import math
import operator
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from moesim.errors import InputError, did_you_mean
from moesim.evidence import BAND_Z
from moesim.validate.serving_points import Point

METRICS = ("tpot", "ttft", "latency")
GROUP_BY = ("model", "device", "engine")
LEAST_GROUP_ROWS = 20
"""A group with more rows than this counts for the worst group."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """Prediction of one metric.

    Attributes
    ----------
    seconds : float
        [s]
    sigma : float
        Spread of ln(true / predicted) that is expected. [-]
    """

    seconds: float
    sigma: float

    @property
    def low(self) -> float:
        """Lower end of the 80 % band. [s]"""
        return self.seconds * math.exp(-BAND_Z * self.sigma)

    @property
    def high(self) -> float:
        """Upper end. [s]"""
        return self.seconds * math.exp(BAND_Z * self.sigma)


@dataclass(frozen=True, slots=True)
class Row:
    """One run.

    Attributes
    ----------
    point : Point
        What was measured.
    predicted : dict of str to Predicted
        By metric; empty where nothing could be predicted.
    reason : str
        Why not.
    warnings : tuple of str
        What widened the band, or was assumed.
    outcome : object
        Whoever predicted may keep more of it here.
    """

    point: Point
    predicted: Mapping[str, Predicted]
    reason: str = ""
    warnings: tuple[str, ...] = ()
    outcome: Any = None

    def measured(self, metric: str) -> float | None:
        """Measured seconds, or None."""
        point = self.point
        if metric == "latency":
            if point.ttft_s is None or point.tpot_s is None:
                return None
            return point.ttft_s + (point.output_tokens - 1) * point.tpot_s
        return point.tpot_s if metric == "tpot" else point.ttft_s

    def log_error(self, metric: str) -> float | None:
        """ln(predicted / measured), or None where either is missing."""
        measured, predicted = self.measured(metric), self.predicted.get(metric)
        if measured is None or predicted is None:
            return None
        return math.log(predicted.seconds / measured)

    def inside(self, metric: str) -> bool | None:
        """Whether the measurement lies in the band, or None."""
        measured, predicted = self.measured(metric), self.predicted.get(metric)
        if measured is None or predicted is None:
            return None
        return predicted.low <= measured <= predicted.high


def plain_row(row: Row) -> dict[str, Any]:
    """Row of the output contract."""
    plain: dict[str, Any] = {name: getattr(row.point, name) for name in ("id", *GROUP_BY, "engine_version")}
    for metric in METRICS:
        measured, predicted = row.measured(metric), row.predicted.get(metric)
        error = row.log_error(metric)
        plain[metric] = {
            "measured_s": measured,
            "predicted_s": predicted.seconds if predicted else None,
            "low_s": predicted.low if predicted else None,
            "high_s": predicted.high if predicted else None,
            "ape": abs(math.expm1(error)) if error is not None else None,
            "inside_band": row.inside(metric),
        }
    plain["inside_band"] = row.inside("tpot")
    if row.reason:
        plain["reason"] = row.reason
    if row.warnings:
        plain["warnings"] = list(row.warnings)
    return plain


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, errors by metric, and groups by model, device and engine."""
    predicted = [row for row in rows if row.predicted]
    document: dict[str, Any] = {
        "n": len(rows),
        "n_predicted": len(predicted),
        "n_within": sum(row.inside("tpot") is True for row in predicted),
        "predicted_fraction": len(predicted) / len(rows) if rows else 0.0,
    }
    for metric in METRICS:
        document[metric] = errors(predicted, metric)
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(getattr(row.point, name) for name in GROUP_BY), []).append(row)
    document["groups"] = [
        dict(zip(GROUP_BY, key, strict=True))
        | {"n": len(own), "n_predicted": sum(bool(row.predicted) for row in own)}
        | {metric: errors(own, metric) for metric in ("tpot", "ttft")}
        for key, own in sorted(groups.items())
    ]
    large = [g["tpot"] for g in document["groups"] if g["n"] > LEAST_GROUP_ROWS and g["tpot"]["n"]]
    document["worst_group_tpot_median_ape"] = max((g["median_ape"] for g in large), default=0.0)
    document["unpredicted"] = dict(Counter(row.reason for row in rows if not row.predicted).most_common())
    return document


def errors(rows: Iterable[Row], metric: str) -> dict[str, Any]:
    """Error statistics of a metric. [-]

    ``median_ape, mape, p90_ape`` of the magnitude, ``bias`` the median and ``mean_error`` the mean with
    sign, ``coverage`` the share inside the band.
    """
    pairs = [(row.log_error(metric), row.inside(metric)) for row in rows]
    logs = np.array([error for error, _ in pairs if error is not None])
    if not logs.size:
        return {"n": 0}
    relative = np.expm1(logs)
    return {
        "n": int(logs.size),
        "median_ape": float(np.median(np.abs(relative))),
        "mape": float(np.mean(np.abs(relative))),
        "p90_ape": float(np.quantile(np.abs(relative), 0.9)),
        "bias": float(np.median(relative)),
        "mean_error": float(np.mean(relative)),
        "coverage": float(np.mean([inside for _, inside in pairs if inside is not None])),
    }


_CONDITION = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([-+0-9.eE]+)\s*")
_COMPARE = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Condition:
    """A bound on a number of the summary, as ``tpot_median_ape<0.12``."""

    name: str
    sign: str
    bound: float

    @classmethod
    def parse(cls, text: str, names: Iterable[str]) -> Condition:
        """Condition from its text.

        Raises
        ------
        InputError
            Not of that form, or a name that the summary does not have.
        """
        known = list(names)
        match = _CONDITION.fullmatch(text)
        if match is None:
            accepted = "NAME, one of < <= > >=, a number; as tpot_median_ape<0.12"
            raise InputError.at("--require", text, accepted)
        name, sign, number = match.groups()
        if name not in known:
            accepted = f"one of {', '.join(known)}{did_you_mean(name, known)}"
            raise InputError.at("--require", name, accepted)
        try:
            return cls(name, sign, float(number))
        except ValueError:
            raise InputError.at("--require", number, "a number") from None

    def holds(self, numbers: Mapping[str, float]) -> bool:
        """Whether it is met; a number that there is not is not met."""
        value = numbers.get(self.name, math.nan)
        return bool(_COMPARE[self.sign](value, self.bound))

    def __str__(self) -> str:
        return f"{self.name}{self.sign}{self.bound:g}"


def numbers_of(document: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of a summary by name: ``tpot_median_ape``, ``ttft_coverage``, ``n_predicted`` ..."""
    flat = {n: float(v) for n, v in document.items() if isinstance(v, int | float)}
    for metric in METRICS:
        own = document.get(metric, {})
        flat |= {f"{metric}_{name}": float(value) for name, value in own.items()}
    return flat


NUMBER_NAMES = (
    *("n", "n_predicted", "n_within", "predicted_fraction", "worst_group_tpot_median_ape"),
    *(
        f"{metric}_{name}"
        for metric in METRICS
        for name in ("n", "median_ape", "mape", "p90_ape", "bias", "mean_error", "coverage")
    ),
)
"""Everything a condition may name."""
