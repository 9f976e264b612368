"""Speed of the request clock: a dense engine, an MoE in lockstep, a wide pool, and the naive loop."""

import resource
import time
from dataclasses import dataclass

import numpy as np
from measure import Row, show

from moesim.evidence import rng_for
from moesim.scenario.resolve import resolve
from moesim.scenario.serving import build_serving
from moesim.serving.engine import Engine
from moesim.serving.instance import Instance
from moesim.serving.iterations import Exact
from moesim.serving.memo import Memo
from moesim.serving.naive import NaiveInstance
from moesim.serving.routers.round_robin import RoundRobin
from moesim.serving.service import InstanceSpec, Service
from moesim.serving.workload import Workload
from moesim.units import PS_PER_S

CLIENTS = "{kind: closed_loop, concurrency: 512, num_requests: 1024, input_tokens: 500, output_tokens: %s}"
WIDE = [
    "cluster=h200_x32",
    "plan.tp=1",
    "plan.attention_dp=32",
    "plan.ep=32",
    "workload=" + CLIENTS % "{kind: uniform, low: 400, high: 1200}",
    "serving.step_times=exact",
]


@dataclass(frozen=True)
class Affine:
    """Step times of a line: what is measured is the clock."""

    num_ranks: int = 1

    def seconds(self, shapes):  # noqa: D102
        own = 6e-3 + 2e-5 * shapes.new_tokens + 3e-8 * shapes.decode_context_tokens
        return own.max(axis=1)

    def overhead(self, shapes):  # noqa: D102
        return np.zeros(shapes.num_samples)


def played(workload, engine, num_ranks=1, make=Instance):
    """CPU seconds, service and measures of one run, the memo filled on the way."""
    longest = int((workload.input_tokens + workload.output_tokens).max())
    memo = Memo(
        Exact(Affine(num_ranks), engine),
        max_tokens=engine.max_num_batched_tokens,
        max_decodes=engine.max_num_seqs,
        max_context=longest,
    )
    service = Service(workload, [InstanceSpec(engine, memo, num_ranks)], RoundRobin(), make=make)
    start = time.process_time()
    done = service.run()
    return time.process_time() - start, service, done


def poisson(count, rate, inputs, outputs):
    rng = rng_for(0, "benchmark/serving")
    return Workload.of(np.cumsum(rng.exponential(1 / rate, count)), inputs, outputs)


def fixed(count, tokens):
    return np.full(count, tokens, dtype=np.int64)


def rows_of(name, workload, engine, num_ranks, targets):
    runs = sorted((played(workload, engine, num_ranks) for _ in range(3)), key=lambda run: run[0])
    seconds, service, done = runs[1]
    simulated = max(done.finish_ps) / PS_PER_S
    figures = {
        "steps/s": done.num_steps / seconds,
        "requests/s": workload.num_requests / seconds,
        "tokens/s": (done.prompt_tokens + done.output_tokens) / seconds,
        "x real time": simulated / seconds,
    }
    rows = [Row(f"{name}", value, unit, targets.get(unit)) for unit, value in figures.items()]
    arrivals = workload.num_requests
    events = (service.agenda.num_events - arrivals) / done.num_steps
    return [*rows, Row(f"{name}, beside one a request", events, "events/step"), Row(name, seconds, "CPU s")]


def scenario_rows(name, scenario, overrides, targets):
    """A shipped scenario once built, the second of two runs: tables are filled, the memo is not."""
    built = build_serving(resolve(scenario, overrides))
    for _ in range(2):
        start = time.process_time()
        done = built.service(built.iterations()).run()
        seconds = time.process_time() - start
    figures = {"steps/s": done.num_steps / seconds, "x real time": max(done.finish_ps) / PS_PER_S / seconds}
    rows = [Row(name, value, unit, targets.get(unit)) for unit, value in figures.items()]
    return [*rows, Row(name, seconds * 1e3, "CPU ms")]


def main() -> list[Row]:
    engine = Engine(num_blocks=20_000, max_num_batched_tokens=2048, max_num_seqs=256)
    rows = []
    for rate in (7, 14, 20):
        workload = poisson(8000, rate, fixed(8000, 1000), fixed(8000, 200))
        targets = {"steps/s": 40_000, "requests/s": 7_000} if rate > 7 else {"steps/s": 40_000}
        rows += rows_of(f"dense, 1,000 in 200 out, {rate}/s", workload, engine, 1, targets)
    rng = rng_for(1, "benchmark/serving")
    lengths = np.clip(rng.lognormal(6.2, 0.9, (2, 3000)), 4, 4000).astype(np.int64)
    moe = poisson(3000, 10, lengths[0], lengths[1])
    rows += rows_of("two ranks in lockstep, 10/s, 6 ms steps", moe, engine, 2, {"steps/s": 8_500})
    count = 100_000
    wide = poisson(count, 2000, fixed(count, 500), rng.integers(400, 601, count))
    pool = Engine(num_blocks=60_000, max_num_batched_tokens=4096, max_num_seqs=256)
    seconds, _, done = played(wide, pool, 320)
    tokens = done.prompt_tokens + done.output_tokens
    rows += [
        Row("320 ranks, 100,000 requests: under 20 CPU s", seconds, "CPU s"),
        Row("320 ranks, tokens", tokens, "tokens", 100_000_000),
    ]
    moe_targets = {"steps/s": 8_500, "x real time": 550}
    rows += scenario_rows("Qwen3-30B DP2 x EP2, 300 requests", "qwen3_30b_serve_h200x2", [], moe_targets)
    rows += scenario_rows("DeepSeek-R1 exact, 32 ranks", "deepseek_r1_serve_h200x8", WIDE, {"steps/s": 500})
    small = poisson(400, 20, fixed(400, 1000), fixed(400, 400))
    lazy_s, naive_s = (played(small, engine, make=make)[0] for make in (Instance, NaiveInstance))
    rows.append(Row("naive over lazy, time", naive_s / lazy_s, "x", 3))
    rows.append(Row("peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "MB"))
    show("serving clock", rows)
    return rows


if __name__ == "__main__":
    main()
