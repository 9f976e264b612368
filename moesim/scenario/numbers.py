"""Metrics of a simulated step, by their names in the output contract."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import BAND_QUANTILES, Seconds
from moesim.kernels.cost import compute_dtype
from moesim.memory.remedy import sequences_that_fit
from moesim.metrics.breakdown import activity
from moesim.metrics.step import imbalance_ratio, mfu_fraction, tokens_per_s
from moesim.model.layer_ops import forward_flops_per_token
from moesim.scenario.build import Built
from moesim.scenario.result import Metric
from moesim.scenario.schema import Scenario
from moesim.scenario.simulate import Simulated, StepTimes
from moesim.scenario.views import Batches
from moesim.steps.block import COMM, COMPUTE


def metrics_of(built: Built, simulated: Simulated, batches: Batches) -> dict[str, Metric]:
    """All metrics, headline first."""
    return _rates(built, simulated) | _activity(simulated) | _memory(built) | _routing(batches)


def _rates(built: Built, simulated: Simulated) -> dict[str, Metric]:
    """Time of the step, throughput and utilisation."""
    plan, scenario = built.plan, built.scenario
    decode = scenario.question == "decode_step"
    tokens = scenario.batch.tokens_per_rank * plan.attention_dp * plan.pp
    # of the datatype in which most of the model multiplies
    stored = built.dtypes.experts if built.model.num_experts else built.dtypes.weights
    device = scenario.cluster.node.device
    peak = device.dense_peak_flops_per_s(compute_dtype(stored, built.dtypes.activations, device))
    flops = forward_flops_per_token(built.model, _mean_sequence_tokens(scenario))

    def metric(of: Callable[[StepTimes], Seconds], unit: str) -> Metric:
        return timed(simulated, of, unit)

    rate = "output_tokens_per_s" if decode else "input_tokens_per_s"
    return {
        "tpot_s" if decode else "prefill_s": metric(lambda t: t.period_s if decode else t.latency_s, "s"),
        rate: metric(lambda t: tokens_per_s(tokens, t.period_s), "tokens_per_s"),
        f"{rate}_per_device": metric(
            lambda t: tokens_per_s(tokens / plan.num_devices, t.period_s), "tokens_per_s"
        ),
        "mfu_fraction": metric(
            lambda t: mfu_fraction(flops, tokens, t.period_s, peak, plan.num_devices), "fraction"
        ),
    }


def _mean_sequence_tokens(scenario: Scenario) -> int:
    """Sequence whose average position sees as many tokens as those of the step do. [tokens]"""
    batch = scenario.batch
    if scenario.question == "decode_step":
        return 2 * batch.context_tokens + 1
    return 2 * batch.context_tokens + batch.tokens_per_rank // (batch.sequences_per_rank or 1)


def _activity(simulated: Simulated) -> dict[str, Metric]:
    """Mean over ranks of what the median batch's latency was not spent computing on."""
    makespan_s = float(simulated.nominal.latency_s[0])
    spent = activity(simulated.program, simulated.recorded, COMPUTE, COMM, makespan_s)
    return {
        "exposed_comm_s": Metric(float(spent.exposed_comm_s.mean()), "s"),
        "idle_s": Metric(float(spent.idle_s.mean()), "s"),
    }


def _memory(built: Built) -> dict[str, Metric]:
    """Fullest rank, and how many sequences of this context would fit beside the weights."""
    return {
        "peak_bytes": Metric(float(built.ledger.need_bytes.max()), "bytes"),
        "free_bytes": Metric(float(built.ledger.free_bytes.min()), "bytes"),
        "sequences_that_fit": Metric(float(sequences_that_fit(built.memory)), "count"),
    }


def _routing(batches: Batches) -> dict[str, Metric]:
    """Imbalance over ranks and experts and experts touched, with their scatter over batches."""
    routed = [lane.routed for stages in batches for stage in stages for lane in stage if lane.routed]
    if not routed:
        return {}
    return {
        "imbalance_ratio": scattered([imbalance_ratio(r.load.rows) for r in routed], "ratio"),
        "expert_imbalance_ratio": scattered(
            [imbalance_ratio(r.expert_counts.astype(np.float64)) for r in routed], "ratio"
        ),
        "touched_experts_per_rank": scattered([float(r.load.touched.mean()) for r in routed], "count"),
    }


def timed(simulated: Simulated, of: Callable[[StepTimes], Seconds], unit: str) -> Metric:
    """Metric of step times: mean and scatter over routed batches, band from calibration errors."""
    over_batches, errors, nominal = (
        np.asarray(of(times)) for times in (simulated.batches, simulated.errors, simulated.nominal)
    )
    value = float(over_batches.mean())
    low, high = np.quantile(errors, BAND_QUANTILES) / nominal[0] * value
    return Metric(value, unit, float(low), float(high), *_range(over_batches))


def scattered(values: list[float], unit: str) -> Metric:
    """Metric that no duration enters: mean and scatter over batches."""
    return Metric(float(np.mean(values)), unit, None, None, *_range(np.array(values)))


def _range(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, BAND_QUANTILES)
    return float(low), float(high)
