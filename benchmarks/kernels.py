"""Evaluations a second of the fitted kernel forms of one GPU, in batches and one at a time."""

from collections.abc import Callable

from measure import Row, cpu_s, show

from moesim.evidence import rng_for
from moesim.hardware import load_device
from moesim.kernels.choose import cost_of
from moesim.kernels.histogram import ExpertLoad
from moesim.kernels.lookup import GemmLookup
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, GroupedExperts

DEVICE = "h100_sxm"
BATCH = 10_000
NUM_EXPERTS = 64
ROWS = 777
TARGETS = {"gemm": 1e6, "moe": 10e6, "attention_prefill": 20e6, "attention_decode": 20e6}


def calls() -> dict[str, Callable[[], object]]:
    """One batched call a family."""
    cost = cost_of(load_device(DEVICE))
    rng = rng_for(0, "benchmark/kernels")
    rows = rng.integers(1, 8192, BATCH).astype(float)
    lengths = rng.integers(1, 32768, BATCH).astype(float)
    sequences = rng.integers(1, 256, BATCH).astype(float)
    gemm = Gemm("gemm", rows, 4096, 7168, "bf16", "bf16")
    experts = GroupedExperts("experts", 2048, 768, True, "bf16", "bf16", NUM_EXPERTS, 8)
    load = ExpertLoad.of(rng.poisson(8, (BATCH, NUM_EXPERTS)))
    prefill = AttentionPrefill("prefill", sequences, lengths, 0.0, 32, 8, 128, 128, "bf16", "bf16")
    decode = AttentionDecode("decode", sequences, lengths, 1.0, 32, 8, 128, 128, 4096.0, "bf16", "bf16")
    return {
        "gemm": lambda: cost.op(gemm),
        "moe": lambda: cost.experts(experts, load),
        "attention_prefill": lambda: cost.op(prefill),
        "attention_decode": lambda: cost.op(decode),
    }


def main() -> None:
    rows = [
        Row(f"{family}, batches of {BATCH:,}", BATCH / cpu_s(run, loops=10), "calls/s", TARGETS[family])
        for family, run in calls().items()
    ]
    cost = cost_of(load_device(DEVICE))
    one = Gemm("gemm", float(ROWS), 4096, 7168, "bf16", "bf16")
    lookup = GemmLookup.of(cost, one, most_rows=16384)
    rows.append(Row("gemm, one at a time", 1 / cpu_s(lambda: cost.op(one), loops=50), "calls/s"))
    looked_up = cpu_s(lambda: lookup.seconds(ROWS), loops=100_000)
    rows.append(Row("gemm, looked up in T(rows)", 1 / looked_up, "calls/s"))
    show(f"fitted costs of {DEVICE}", rows)


if __name__ == "__main__":
    main()
