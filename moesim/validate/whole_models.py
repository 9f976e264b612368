"""Whole models on one device: measured wall time of a step beside the prediction from fitted operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.files import Tree
from moesim.kernels.measured import MeasuredTable
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.run import run


@dataclass(frozen=True, slots=True)
class StepRow:
    """One measured step and its prediction.

    Attributes
    ----------
    model, phase : str
    num_sequences, query_tokens, context_tokens : int
        Shape of the step.
    measured_s, predicted_s, low_s, high_s : float
        Wall time; prediction with its 80 % band. [s]
    """

    model: str
    phase: str
    num_sequences: int
    query_tokens: int
    context_tokens: int
    measured_s: float
    predicted_s: float
    low_s: float
    high_s: float

    @property
    def error_fraction(self) -> float:
        """Signed relative error of the prediction."""
        return self.predicted_s / self.measured_s - 1

    @property
    def inside_band(self) -> bool:
        """Whether the measurement lies in the predicted band."""
        return self.low_s <= self.measured_s <= self.high_s


def predicted_steps(
    tables: Iterable[MeasuredTable],
    cluster: str,
    models: Mapping[str, Path],
    routing: Mapping[str, Mapping[str, Any]],
) -> list[StepRow]:
    """Prediction of every row of ``step`` tables.

    Parameters
    ----------
    tables : iterable of MeasuredTable
        Family ``step``; others are passed over.
    cluster : str
        Profile of the machine they were taken on.
    models : mapping of str to Path
        Folder or config of each model named in the tables.
    routing : mapping of str to mapping
        ``routing`` section of each model's scenario.

    Raises
    ------
    InputError
        A model of the tables that is not given.
    """
    rows = []
    for table in tables:
        if table.family != "step":
            continue
        for index in range(table.num_rows):
            shape = {name: column[index] for name, column in table.columns.items()}
            name = str(shape["model"])
            if name not in models:
                raise InputError.at("model", name, ", ".join(sorted(models)), where=table.name)
            tree = _scenario(
                shape, table.dtype, cluster, models[name], routing.get(name, {"generator": "uniform"})
            )
            result = run(resolve_tree(tree)).result
            metric = result.metrics[result.headline]
            rows.append(
                StepRow(
                    name,
                    str(shape["phase"]),
                    int(shape["num_sequences"]),
                    int(shape["query_tokens"]),
                    int(shape["context_tokens"]),
                    float(table.seconds[index]),
                    metric.value,
                    metric.low or metric.value,
                    metric.high or metric.value,
                )
            )
    return rows


def summary(rows: Iterable[StepRow]) -> dict[str, float]:
    """Median and 90 % absolute error, bias and band coverage. [-]"""
    kept = list(rows)
    if not kept:
        return {"n": 0}
    errors = np.array([row.error_fraction for row in kept])
    inside = np.array([row.inside_band for row in kept])
    return {
        "n": len(errors),
        "median_ape": float(np.median(abs(errors))),
        "p90_ape": float(np.quantile(abs(errors), 0.9)),
        "bias": float(np.median(errors)),
        "coverage": float(inside.mean()),
    }


def _scenario(
    shape: Mapping[str, Any], dtype: str, cluster: str, model: Path, routing: Mapping[str, Any]
) -> Tree:
    sequences, tokens = int(shape["num_sequences"]), int(shape["query_tokens"])
    decode = shape["phase"] == "decode"
    batch: dict[str, Any] = {
        "tokens_per_rank": sequences * tokens,
        "context_tokens": int(shape["context_tokens"]),
    }
    if not decode:
        batch["sequences_per_rank"] = sequences
    data = {
        "schema_version": 1,
        "name": "whole_model",
        "question": "decode_step" if decode else "prefill_step",
        "model": str(model),
        "dtypes": dict.fromkeys(("weights", "experts", "activations", "dispatch", "kv"), dtype),
        "cluster": cluster,
        "plan": {},
        "routing": {"num_batches": 4, **routing},
        "batch": batch,
    }
    return Tree(data, source=f"{shape['model']} {shape['phase']}")
