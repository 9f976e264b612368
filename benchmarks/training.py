"""Speed of the pipeline program: 16 stages, 2 chunks each, 128 microbatches, 64 samples, 4 replicas."""

import numpy as np
from measure import Row, cpu_s, show

from moesim.evidence import rng_for
from moesim.training import pipeline
from moesim.training.orders import in_flight, sequence
from moesim.training.schedules.base import Geometry, Pass, schedules
from moesim.units import MS

GEOMETRY = Geometry(16, 128, 2)
SAMPLES, REPLICAS = 64, 4


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
    show("training", rows)
    return rows


if __name__ == "__main__":
    main()
