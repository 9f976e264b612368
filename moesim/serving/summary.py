"""Numbers of a finished run: latencies of requests, rates, and what was met of the objectives.

Definitions are those of ``docs/metrics.md``; percentiles interpolate linearly. Requests of the warm-up are
left out of latencies; rates count the time from the first arrival behind it to the last completion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.serving.measures import Measures
from moesim.serving.step_times import Floats
from moesim.serving.workload import Workload
from moesim.units import MS, PS_PER_S

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Objectives:
    """Largest latencies that count as good; None: any.

    Attributes
    ----------
    ttft_s, tpot_s, e2e_latency_s : float or None
        [s]
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_latency_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """Per request, ``(request,)``, without warm-up. [s]

    ``tpot_s`` is NaN for an answer of one token.
    """

    ttft_s: Floats
    tpot_s: Floats
    e2e_latency_s: Floats
    queue_s: Floats


def latencies(workload: Workload, measures: Measures) -> Latencies:
    """Latencies of the requests that count."""
    arrival, scheduled, first, last = (
        np.array(column[workload.warmup :], dtype=np.int64)
        for column in (
            measures.arrival_ps,
            measures.first_scheduled_ps,
            measures.first_token_ps,
            measures.finish_ps,
        )
    )
    tokens = workload.output_tokens[workload.warmup :]
    with np.errstate(invalid="ignore", divide="ignore"):
        tpot = np.where(tokens > 1, (last - first) / PS_PER_S / (tokens - 1), np.nan)
    # the client sees everything later, at the same pace
    late = np.nan_to_num(tpot) * measures.delivery_tokens
    return Latencies(
        (first - arrival) / PS_PER_S + late,
        tpot,
        (last - arrival) / PS_PER_S + late,
        (scheduled - arrival) / PS_PER_S,
    )


def duration_s(workload: Workload, measures: Measures) -> float:
    """From the first arrival behind the warm-up to the last completion. [s]"""
    return (max(measures.finish_ps) - min(measures.arrival_ps[workload.warmup :])) / PS_PER_S


def is_good(found: Latencies, objectives: Objectives) -> NDArray[np.bool_]:
    """Which requests meet all objectives; an answer of one token has no time per token to miss."""
    good = np.ones(len(found.ttft_s), dtype=bool)
    for name in ("ttft_s", "tpot_s", "e2e_latency_s"):
        limit = getattr(objectives, name)
        if limit is not None:
            values = getattr(found, name)
            good &= np.isnan(values) | (values <= limit)
    return good


def gap_percentile(measures: Measures, percent: float) -> float:
    """Percentile of the times between tokens, all requests together, to 0.4 %; 0 without any. [s]"""
    seconds, weights = measures.gaps.seconds()
    if not len(seconds):
        return 0.0
    place = np.searchsorted(np.cumsum(weights), percent / 100 * (weights.sum() - 1) + 1)
    return float(seconds[min(int(place), len(seconds) - 1)])


def numbers(
    workload: Workload, measures: Measures, objectives: Objectives, num_devices: int
) -> dict[str, tuple[float, str]]:
    """Every number of a run by its name, with its unit.

    Times of requests carry a band elsewhere; counts and fractions do not depend on calibration alone.
    """
    found = latencies(workload, measures)
    seconds = duration_s(workload, measures)
    counted = len(found.ttft_s)
    inputs = int(workload.input_tokens[workload.warmup :].sum())
    outputs = int(workload.output_tokens[workload.warmup :].sum())
    result: dict[str, tuple[float, str]] = {}
    for name in ("ttft_s", "tpot_s", "e2e_latency_s", "queue_s"):
        values = getattr(found, name)
        values = values[~np.isnan(values)]
        if not len(values):
            continue
        result[f"mean_{name}"] = float(values.mean()), "s"
        for percent in PERCENTILES:
            result[f"p{percent}_{name}"] = float(np.percentile(values, percent)), "s"
    if measures.gaps.total:
        centres, weights = measures.gaps.seconds()
        result["mean_itl_s"] = float(np.average(centres, weights=weights)), "s"
        for percent in PERCENTILES:
            result[f"p{percent}_itl_s"] = gap_percentile(measures, percent), "s"
    good = is_good(found, objectives)
    mean_tpot = result.get("mean_tpot_s", (0.0, ""))[0]
    result |= {
        "requests_per_s": (counted / seconds, "requests_per_s"),
        "goodput_requests_per_s": (float(good.sum()) / seconds, "requests_per_s"),
        "good_fraction": (float(good.mean()), "fraction"),
        "output_tokens_per_s": (outputs / seconds, "tokens_per_s"),
        "total_tokens_per_s": ((inputs + outputs) / seconds, "tokens_per_s"),
        "output_tokens_per_s_per_device": (outputs / seconds / num_devices, "tokens_per_s"),
        "tokens_per_s_per_user": (1 / mean_tpot if mean_tpot else 0.0, "tokens_per_s"),
        "duration_s": (seconds, "s"),
        "preemptions": (float(sum(measures.preemptions)), "count"),
        "retries": (float(sum(measures.retries)), "count"),
        "num_steps": (float(measures.num_steps), "count"),
        "tokens_per_decode_step": (_tokens_per_decode_step(workload, measures), "tokens"),
        "cached_prompt_fraction": (
            sum(measures.cached_tokens) / float(workload.input_tokens.sum()),
            "fraction",
        ),
    }
    return result


def _tokens_per_decode_step(workload: Workload, measures: Measures) -> float:
    """Mean tokens that a request gains in a step, behind its first; 0 without any. [tokens]"""
    later = int(workload.output_tokens.sum()) - workload.num_requests
    return later / measures.gaps.total if measures.gaps.total else 0.0


def vllm_document(
    workload: Workload, measures: Measures, objectives: Objectives, *, model: str
) -> dict[str, Any]:
    """The run in the fields of ``vllm bench serve --save-result``, times in milliseconds."""
    found = latencies(workload, measures)
    seconds = duration_s(workload, measures)
    counted = len(found.ttft_s)
    inputs = int(workload.input_tokens[workload.warmup :].sum())
    outputs = int(workload.output_tokens[workload.warmup :].sum())
    document: dict[str, Any] = {
        "backend": "moesim",
        "model_id": model,
        "num_prompts": counted,
        "duration": seconds,
        "completed": counted,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": counted / seconds,
        "request_goodput": float(is_good(found, objectives).sum()) / seconds,
        "output_throughput": outputs / seconds,
        "total_token_throughput": (inputs + outputs) / seconds,
        "max_concurrency": workload.clients,
    }
    for short, values in (("ttft", found.ttft_s), ("tpot", found.tpot_s), ("e2el", found.e2e_latency_s)):
        known = values[~np.isnan(values)]
        if len(known):
            document |= {
                f"mean_{short}_ms": float(known.mean()) / MS,
                f"median_{short}_ms": float(np.median(known)) / MS,
                f"std_{short}_ms": float(known.std()) / MS,
            }
            for percent in PERCENTILES:
                document[f"p{percent}_{short}_ms"] = float(np.percentile(known, percent)) / MS
    if measures.gaps.total:
        centres, weights = measures.gaps.seconds()
        mean = float(np.average(centres, weights=weights))
        spread = float(np.average((centres - mean) ** 2, weights=weights)) ** 0.5
        document |= {"mean_itl_ms": mean / MS, "std_itl_ms": spread / MS}
        document["median_itl_ms"] = gap_percentile(measures, 50) / MS
        for percent in PERCENTILES:
            document[f"p{percent}_itl_ms"] = gap_percentile(measures, percent) / MS
    return document
