"""Speed of real step programs: DeepSeek-V3 decode, from loads to step times."""

import numpy as np
from measure import Row, cpu_s, show

from moesim.engine import durations_ps, vector
from moesim.scenario.build import build, routed_lanes
from moesim.scenario.resolve import resolve
from moesim.steps.program import step_program

SCENARIO = "deepseek_v3_decode_h200x32"
WIDE = ("plan.attention_dp=256", "plan.ep=256", "cluster.num_nodes=32", "batch.tokens_per_rank=16")
NARROW = ("plan.attention_dp=8", "plan.ep=8", "dtypes.experts=int4", "batch.context_tokens=1024")
QUICK = ("routing.num_batches=1", "routing.generator=zipf")


def step_of(*overrides: str):
    """Built scenario, its builders and the lanes of one routed batch."""
    built = build(resolve(SCENARIO, [*QUICK, *overrides]))
    (lanes,) = routed_lanes(built, built.solution.placement, 1)
    return built, built.stages(), lanes


def main() -> list[Row]:
    built, stages, lanes = step_of(*WIDE)
    program = step_program(stages, lanes, built.overlap).latency
    compiled, durations = vector.compile(program), durations_ps(program)
    interpreted = cpu_s(lambda: vector.run(compiled, durations), loops=20)
    built_anew = cpu_s(lambda: durations_ps(step_program(stages, lanes, built.overlap).latency), loops=3)
    narrow, stages_8, lanes_8 = step_of(*NARROW)
    program_8 = step_program(stages_8, lanes_8, narrow.overlap).latency
    draws = {name: np.linspace(-1, 1, 64) for name in program_8.families()}
    compiled_8, durations_8 = vector.compile(program_8), durations_ps(program_8, draws)
    shared = cpu_s(lambda: vector.run(compiled_8, durations_8), loops=20)
    rows = [
        Row(f"vector, 256 ranks, {len(program.instructions)} instructions", 1 / interpreted, "steps/s", 600),
        Row("program and durations from a routed batch, 256 ranks", 1 / built_anew, "programs/s"),
        Row("vector, 8 ranks, 64 samples share a pass", 64 / shared, "shapes/s", 20_000),
    ]
    show("DeepSeek-V3 decode, 61 layers, a load of its own for every layer and rank", rows)
    return rows


if __name__ == "__main__":
    main()
