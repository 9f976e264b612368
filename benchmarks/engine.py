"""Speed of both interpreters on a synthetic decode step: 61 layers of 9 instructions on two streams."""

import numpy as np
from measure import Row, cpu_s, show

from moesim.engine import Durations, Meet, Part, Program, Run, Wait, durations_ps, vector
from moesim.engine.events import simulate
from moesim.evidence import Estimate, rng_for
from moesim.units import US

NUM_LAYERS = 61


def synthetic_step(num_ranks: int, num_layers: int = NUM_LAYERS) -> Program:
    """Attention, dispatch, shared and routed experts, combine; every duration another on every rank."""
    rng = rng_for(0, "benchmark/engine")
    world = np.zeros(num_ranks, dtype=np.int64)

    def parts(name: str, family: str) -> tuple[Part, ...]:
        return (Part(name, family, Estimate(rng.uniform(1, 100, num_ranks) * US, family, "assumed", 0.1)),)

    instructions = []
    for layer in range(num_layers):
        instructions += [
            Run("compute", parts("attention", "attention"), layer),
            Wait("comm", "compute"),
            Meet("comm", world, parts("dispatch", "all_to_all"), layer),
            Run("compute", parts("shared_experts", "gemm"), layer),
            Wait("compute", "comm"),
            Run("compute", parts("experts", "moe"), layer),
            Wait("comm", "compute"),
            Meet("comm", world, parts("combine", "all_to_all"), layer),
            Wait("compute", "comm"),
        ]
    return Program(num_ranks, ("compute", "comm"), tuple(instructions))


def vector_rows() -> list[Row]:
    program = synthetic_step(256)
    compiled, durations = vector.compile(program), durations_ps(program)
    seconds = rng_for(1, "benchmark/engine").uniform(1, 100, (len(program.instructions), 1, 256)) * US
    swapped = cpu_s(lambda: vector.run(compiled, Durations.from_seconds(seconds)), loops=20)
    rows = [
        Row(
            "vector, 256 ranks", 1 / cpu_s(lambda: vector.run(compiled, durations), loops=50), "steps/s", 600
        ),
        Row("vector, 256 ranks, other seconds each time", 1 / swapped, "steps/s"),
    ]
    program = synthetic_step(8)
    compiled = vector.compile(program)
    shape = (len(program.instructions), 64, 8)
    seconds = rng_for(2, "benchmark/engine").uniform(1, 100, shape) * US
    durations = Durations.from_seconds(seconds)
    shared = cpu_s(lambda: vector.run(compiled, durations), loops=20)
    swapped = cpu_s(lambda: vector.run(compiled, Durations.from_seconds(seconds)), loops=20)
    return [
        *rows,
        Row("vector, 8 ranks, 64 samples share a pass", 64 / shared, "shapes/s", 20_000),
        Row("vector, the same, other seconds each time", 64 / swapped, "shapes/s"),
    ]


def event_rows() -> list[Row]:
    program = synthetic_step(64)
    compiled, durations = vector.compile(program), durations_ps(program)
    event_s = cpu_s(lambda: simulate(program, durations))
    vector_s = cpu_s(lambda: vector.run(compiled, durations), loops=50)
    if simulate(program, durations).makespan_ps != vector.run(compiled, durations).makespan_ps[0]:
        raise AssertionError("the interpreters disagree")
    work = len(program.instructions) * program.num_ranks
    return [
        Row("events, 64 ranks", work / event_s, "rank-instructions/s", 100_000),
        Row("events over vector, time at 64 ranks", event_s / vector_s, "x", 50),
    ]


def setup_rows() -> list[Row]:
    """What is paid once for a program, not for a run."""
    program = synthetic_step(256)
    return [
        Row("check and compile, 256 ranks", 1 / cpu_s(lambda: vector.compile(program)), "programs/s"),
        Row("durations of parts, 256 ranks", 1 / cpu_s(lambda: durations_ps(program)), "programs/s"),
    ]


def main() -> list[Row]:
    rows = [*vector_rows(), *event_rows(), *setup_rows()]
    show("engine", rows)
    return rows


if __name__ == "__main__":
    main()
