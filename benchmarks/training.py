"""Speed of the pipeline program (16 stages, 2 chunks each, 128 microbatches), of a step, of a search."""

from time import process_time

import numpy as np
from measure import Row, cpu_s, show

from moesim.evidence import rng_for
from moesim.scenario.resolve import resolve
from moesim.scenario.train_search import common_of, default_space, search_plans
from moesim.scenario.training import build_training
from moesim.training import pipeline
from moesim.training.orders import in_flight, sequence
from moesim.training.schedules.base import Geometry, Pass, schedules
from moesim.training.step import TrainStep
from moesim.units import MS

GEOMETRY = Geometry(16, 128, 2)
SAMPLES, REPLICAS = 64, 4
ROOM = "cluster.node.device.memory.hbm.capacity_bytes=2e11"
"""Uneven experts need more memory than the recipe leaves; a step's speed does not depend on it."""


def times(num_samples: int, num_replicas: int) -> pipeline.PassTimes:
    """Another duration for every pass, and everything that may surround the passes."""
    rng = rng_for(0, "benchmark/training")
    stages, chunks, microbatches = GEOMETRY.num_stages, GEOMETRY.num_chunks, GEOMETRY.num_microbatches
    shape = (num_samples, num_replicas, stages, chunks, microbatches)
    held = np.full((stages, chunks), 10 * MS)
    return pipeline.PassTimes(
        {kind: rng.uniform(1, 2, shape) * MS for kind in Pass},
        send_s=0.01 * MS,
        gather_s=held,
        reduce_s=held,
        optimizer_s=np.full(stages, MS),
    )


def simulate_cold(schedule, given: pipeline.PassTimes) -> None:
    sequence.cache_clear()
    pipeline.compiled.cache_clear()
    pipeline.simulate_pipeline(schedule, GEOMETRY, given)


def step_with_loads() -> None:
    """DeepSeek-V3 on 2,048 devices from its file to its time, every layer with loads of its own."""
    sequence.cache_clear()
    pipeline.compiled.cache_clear()
    uneven = resolve(
        "deepseek_v3_train_h800x2048", ["routing={generator: fitted_skew, num_batches: 4}", ROOM]
    )
    TrainStep(build_training(uneven).setup).run()


def searched() -> int:
    """Plans of Qwen3-235B on 256 devices that are combined, sized and, the best, timed."""
    sequence.cache_clear()
    pipeline.compiled.cache_clear()
    resolved = resolve("qwen3_235b_train_h100x256")
    common = common_of(resolved)
    return search_plans(resolved.scenario, common, default_space(resolved.scenario, common)).num_sized


def main() -> list[Row]:
    many, one = times(SAMPLES, REPLICAS), times(1, 1)
    rows = []
    for name in ("interleaved", "dualpipe"):
        schedule = schedules.build(name)
        num_tasks = len(sequence(schedule, GEOMETRY).placed)
        work = num_tasks * SAMPLES * REPLICAS
        first = cpu_s(lambda s=schedule: simulate_cold(s, many), repeats=3)
        again = cpu_s(lambda s=schedule: pipeline.simulate_pipeline(s, GEOMETRY, many), repeats=3)
        single = cpu_s(lambda s=schedule: pipeline.simulate_pipeline(s, GEOMETRY, one))
        count = cpu_s(lambda s=schedule: in_flight(s, GEOMETRY))
        rows += [
            Row(
                f"{name}, {SAMPLES} samples, {REPLICAS} replicas, built anew",
                work / first,
                "passes/s",
                work / 2,
            ),
            Row(f"{name}, the same with other seconds", work / again, "passes/s"),
            Row(f"{name}, one sample and replica, other seconds", num_tasks / single, "passes/s"),
            Row(f"{name}, in-flight counts", num_tasks / count, "passes/s"),
        ]
    step_s = cpu_s(step_with_loads, repeats=1)
    rows.append(Row("DeepSeek-V3, 2,048 GPUs, PP16 EP64, one step", 60 / step_s, "steps/min", 60 / 5))
    start = process_time()
    plans = searched()
    # on two cores a process each
    rate = 2 * 60 * plans / (process_time() - start)
    rows.append(Row("Qwen3-235B, 256 GPUs, plans searched by two cores", rate, "plans/min", 1000 / 3))
    show("training", rows)
    return rows


if __name__ == "__main__":
    main()
