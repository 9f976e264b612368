"""Whole models on one device: measured wall time of a step beside the prediction from fitted operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from moesim.errors import InputError
from moesim.files import Tree
from moesim.kernels.measured import MeasuredTable
from moesim.model.attention.grouped_query import GroupedQueryAttention
from moesim.model.dtypes import bytes_per_element
from moesim.model.ops import MemoryBound
from moesim.scenario.build import Built
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.run import Outcome, run
from moesim.traces.description import id_dtype
from moesim.traces.store import write_trace
from moesim.traces.synthetic import generated_trace

CONCATENATIONS, ROTARY_KERNELS = 2, 5


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
            own = routing.get(name, {"generator": "uniform"})
            with TemporaryDirectory() as folder:
                if name not in routing and shape["expert_tokens"]:
                    own = _recorded(str(shape["expert_tokens"]), shape, models[name], Path(folder))
                tree = _scenario(shape, table.dtype, cluster, models[name], own)
                done = run(resolve_tree(tree))
            assert isinstance(done, Outcome)  # a step is asked for
            result = done.result
            metric = result.metrics[result.headline]
            eager_s = _eager_s(done.built, shape, table.dtype)
            rows.append(
                StepRow(
                    name,
                    str(shape["phase"]),
                    int(shape["num_sequences"]),
                    int(shape["query_tokens"]),
                    int(shape["context_tokens"]),
                    float(table.seconds[index]),
                    metric.value + eager_s,
                    (metric.low or metric.value) + eager_s,
                    (metric.high or metric.value) + eager_s,
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


def _eager_s(built: Built, shape: Mapping[str, Any], dtype: str) -> float:
    """What the library's eager mode does beside the operations of the model. [s]

    Its cache of a layer is joined anew with the keys and values of every step
    (``DynamicLayer.update``: two concatenations that read and write the whole cache), and the rotary
    embedding of queries and of keys takes five kernels each (``apply_rotary_pos_emb``: half negated,
    halves joined, two products, one sum), as read from transformers 5.
    """
    new = int(shape["num_sequences"]) * int(shape["query_tokens"])
    cached = new + int(shape["num_sequences"]) * int(shape["context_tokens"])
    number = bytes_per_element(dtype)
    total = 0.0
    for layer in built.model.layers:
        attention = layer.attention
        if not isinstance(attention, GroupedQueryAttention):
            continue
        width = attention.num_heads * attention.head_dim
        keys = attention.num_kv_heads * attention.head_dim
        joined = MemoryBound("cache", 2.0 * cached * keys * number)
        turned = [MemoryBound("rotary", 2.0 * new * part * number) for part in (width, keys)]
        seconds = [float(np.sum(built.machine.cost.op(op).seconds)) for op in (joined, *turned)]
        total += CONCATENATIONS * seconds[0] + ROTARY_KERNELS * sum(seconds[1:])
    return total


def _recorded(text: str, shape: Mapping[str, Any], model: Path, folder: Path) -> dict[str, Any]:
    """``routing`` section that gives every expert the tokens it had when the step was measured."""
    counts = np.array([[int(n) for n in layer.split()] for layer in text.split("|")])
    tokens = int(shape["num_sequences"]) * int(shape["query_tokens"])
    top_k = int(counts[0].sum()) // tokens
    ids = np.empty((2 * tokens, len(counts), top_k), np.uint16)
    for layer, own in enumerate(counts):
        # an expert's places are consecutive, fewer than there are tokens: no token meets it twice
        places = np.repeat(np.arange(len(own)), own).reshape(top_k, tokens).T
        ids[:, layer] = np.concatenate([places, places])
    experts = counts.shape[1]
    trace = generated_trace(ids.astype(id_dtype(experts)), experts, source=f"measured step of {model.name}")
    halves = np.arange(2 * tokens) // tokens
    trace = replace(
        trace,
        request_index=halves.astype(np.int32),
        position=(np.arange(2 * tokens) % tokens).astype(np.int32),
        phase=np.zeros(2 * tokens, np.uint8),
    )
    return {"trace": str(write_trace(folder / "step.safetensors", trace)), "num_batches": 1}


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
