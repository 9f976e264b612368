"""Runs measured request by request, replayed: the same prompts, answers and arrivals, nothing fitted.

A folder holds ``meta.json`` (what was served, the engine's arguments), ``requests.jsonl`` (tokens and
timestamps of each request) and, optionally, ``timeseries.csv`` (throughput every tick). A folder of such
folders is a set of runs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.serving.commands import Command
from moesim.serving.deployment import Deployment
from moesim.serving.from_command import commanded
from moesim.serving.one_launch import Spread
from moesim.serving.policies import routers
from moesim.serving.service import Service as Simulated
from moesim.serving.workload import Workload
from moesim.units import PS_PER_S
from moesim.validate.serving_play import instances_of

META, REQUESTS, SERIES = "meta.json", "requests.jsonl", "timeseries.csv"
Floats = NDArray[np.float64]

FIELDS = ("input_toks", "output_toks", "arrival_time", "queued_ts", "first_token_ts", "last_token_ts")


def _mean(values: Floats) -> float:
    return float(np.mean(values))


def _quantile(share: float) -> Callable[[Floats], float]:
    return lambda values: float(np.quantile(values, share))


STATISTICS = (("mean", _mean), ("p50", _quantile(0.5)), ("p90", _quantile(0.9)), ("p99", _quantile(0.99)))


@dataclass(frozen=True)
class Requests:
    """One measured run in columns, ``(request,)``, sorted by arrival.

    Attributes
    ----------
    name : str
    meta : mapping
        What was served.
    input_tokens, output_tokens : ndarray of int64
    arrival_s, ttft_s, tpot_s, latency_s : ndarray
        Arrival from the first one on; the first token from queueing; each further one; the last one. [s]
    tick_s : float
        Of the series. [s]
    throughput : ndarray, ``(tick,)``
        Generated tokens a second; empty without a series.
    """

    name: str
    meta: Mapping[str, Any]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    arrival_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    latency_s: Floats
    tick_s: float
    throughput: Floats


@dataclass(frozen=True, slots=True)
class RequestErrors:
    """Errors of one run.

    Attributes
    ----------
    name : str
    rows : dict
        ``{metric: {measured, predicted}}`` of means and quantiles. [s]
    correlation : float or None
        Of generated tokens a second over time, measured and simulated.
    """

    name: str
    rows: dict[str, dict[str, float]]
    correlation: float | None

    def error(self, metric: str) -> float:
        """Signed relative error of a row."""
        row = self.rows[metric]
        return row["predicted_s"] / row["measured_s"] - 1


def run_folders(folder: Path) -> list[Path]:
    """Folders of runs in or below ``folder``, sorted.

    Raises
    ------
    InputError
        None is there.
    """
    found = [folder] if (folder / META).is_file() else sorted(p.parent for p in folder.glob(f"*/{META}"))
    if not found:
        message = f"no {META} here or one level below; accepted: a folder of a run, or of such folders"
        raise InputError([Problem("", message, str(folder))])
    return found


def read_requests(folder: Path) -> Requests:
    """One measured run.

    Raises
    ------
    InputError
        A file is missing or not of the form above: every wrong line.
    """
    meta = _json(folder / META)
    problems: list[Problem] = []
    rows: list[list[float]] = []
    path = folder / REQUESTS
    for number, line in enumerate(_lines(path), 1):
        try:
            entry = json.loads(line)
            rows.append([float(entry[name]) for name in FIELDS])
        except (ValueError, TypeError) as error:
            problems.append(Problem("", f"not a request: {error}", f"{path}:{number}"))
        except KeyError as error:
            problems.append(Problem(str(error.args[0]), "missing (required)", f"{path}:{number}"))
    if not rows and not problems:
        problems.append(Problem("", "no requests", str(path)))
    if problems:
        raise InputError(problems[:50], source=str(path))
    table = np.array(sorted(rows, key=lambda row: row[2]))
    prompt, answer, arrival, queued, first, last = table.T
    tick = float(meta.get("tick_seconds", 1.0))
    return Requests(
        name=folder.name,
        meta=meta,
        input_tokens=prompt.astype(np.int64),
        output_tokens=answer.astype(np.int64),
        arrival_s=arrival - arrival[0],
        ttft_s=first - queued,
        tpot_s=(last - first) / np.maximum(answer - 1, 1),
        latency_s=last - queued,
        tick_s=tick,
        throughput=_throughput(folder / SERIES),
    )


def replay(requests: Requests, device: str) -> RequestErrors:
    """The run's requests on its deployment, beside what was measured.

    Raises
    ------
    InputError
        Unknown model, device or engine.
    InfeasibleError
        A request could never be admitted.
    """
    deployment, count = deployment_of(requests.meta, device)
    workload = Workload.of(requests.arrival_s, requests.input_tokens, requests.output_tokens)
    longest = int((requests.input_tokens + requests.output_tokens).max())
    spread = Spread.of(requests.input_tokens, requests.output_tokens)
    specs = instances_of(deployment, count, "both", longest=longest, spread=spread)
    measures = Simulated(workload, specs, routers.build("least_loaded", {}, field="router")).run()
    arrival, first, last = (
        np.asarray(column, dtype=np.float64) / PS_PER_S
        for column in (measures.arrival_ps, measures.first_token_ps, measures.finish_ps)
    )
    predicted = {
        "ttft": first - arrival,
        "tpot": (last - first) / np.maximum(requests.output_tokens - 1, 1),
        "latency": last - arrival,
    }
    measured = {"ttft": requests.ttft_s, "tpot": requests.tpot_s, "latency": requests.latency_s}
    rows = {
        f"{metric}_{name}": {"measured_s": of(measured[metric]), "predicted_s": of(predicted[metric])}
        for metric in measured
        for name, of in STATISTICS
    }
    series = _simulated_series(measures, requests.tick_s, len(requests.throughput))
    return RequestErrors(requests.name, rows, _correlation(requests.throughput, series))


def deployment_of(meta: Mapping[str, Any], device: str) -> tuple[Deployment, int]:
    """Deployment of a run's engine arguments, and how many instances of it."""
    given = meta.get("engine_kwargs", {})
    experts = bool(given.get("enable_expert_parallel"))
    tp, dp = int(given.get("tensor_parallel_size") or 1), int(given.get("data_parallel_size") or 1)
    command = Command(
        engine="vllm",
        model=str(given.get("model") or meta.get("model", "")),
        tp=tp,
        attention_dp=dp if experts else 1,
        data_parallel=1 if experts else dp,
        ep=tp * dp if experts else 1,
        weights="bf16" if given.get("dtype") in {"bfloat16", "auto", None} else str(given["dtype"]),
        kv="" if given.get("kv_cache_dtype", "auto") == "auto" else str(given["kv_cache_dtype"]),
        max_num_batched_tokens=given.get("max_num_batched_tokens"),
        max_num_seqs=given.get("max_num_seqs"),
    )
    found = commanded(command, device, str(meta.get("vllm_version", "")))
    return found.deployment, found.num_instances


def device_of(folder: Path, known: list[str]) -> str:
    """Device that a run's folder is named after.

    Raises
    ------
    InputError
        Its name starts with none of the known ones.
    """
    fitting = [name for name in known if folder.name.startswith(f"{name}_")]
    if not fitting:
        accepted = "a folder whose name starts with a device, as rtx_pro_6000_qwen3_32b_tp2"
        raise InputError.at("device", folder.name, accepted, where=str(folder))
    return max(fitting, key=len)


def plain_requests(errors: RequestErrors) -> dict[str, Any]:
    """Row of the output contract."""
    rows = {name: row | {"error": errors.error(name)} for name, row in errors.rows.items()}
    return {"id": errors.name, "metrics": rows, "throughput_correlation": errors.correlation}


def _simulated_series(measures: Any, tick_s: float, ticks: int) -> Floats:
    """Generated tokens a second in the ticks of the measured series."""
    series = measures.total()
    width = series.width_ps / PS_PER_S
    tokens = series.column("output_tokens")
    edges = np.arange(len(tokens) + 1) * width
    total = np.concatenate([[0.0], np.cumsum(tokens)])
    at = np.interp(np.arange(ticks + 1) * tick_s, edges, total)
    return np.asarray(np.diff(at) / tick_s)


def _correlation(measured: Floats, simulated: Floats) -> float | None:
    if len(measured) < 2 or measured.std() == 0 or simulated.std() == 0:
        return None
    return float(np.corrcoef(measured, simulated)[0, 1])


def _throughput(path: Path) -> Floats:
    if not path.is_file():
        return np.empty(0)
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return np.array([float(row["gen_throughput"]) for row in csv.DictReader(file)])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError([Problem("gen_throughput", f"cannot be read: {error}", str(path))]) from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError([Problem("", f"cannot be read: {error}", str(path))]) from None
    if not isinstance(found, dict):
        raise InputError([Problem("", "not a JSON object", str(path))])
    return found


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("", f"cannot be read: {error}", str(path))]) from None
