"""Cache replay of 100,000 tokens x 58 layers x 8 experts, and the event-level driver on a 32-layer model."""

import time

import numpy as np
from measure import Row, cpu_s, show

from moesim.engine.program import Part
from moesim.evidence import Estimate
from moesim.memory.caches import cache_policies, replay
from moesim.memory.demand import Demand
from moesim.offload import Costs, Offload, executors, prefetchers, simulate
from moesim.offload.costs import Unit

TOKENS, LAYERS, EXPERTS, TOP_K, SLOTS = 100_000, 58, 256, 8, 32
BLOCK = 2000
DRIVEN_TOKENS, DRIVEN_LAYERS = 100, 32


def replay_row() -> Row:
    """Even random routing, where nearly everything misses: the slowest case."""
    rng = np.random.default_rng(0)
    block = np.argsort(rng.random((BLOCK, LAYERS, EXPERTS), dtype=np.float32), axis=-1)[..., :TOP_K]
    ids = np.tile(block.astype(np.int32), (TOKENS // BLOCK, 1, 1))
    demand = Demand(EXPERTS, ids, np.ones_like(ids), np.zeros(TOKENS, np.bool_))
    start = time.process_time()
    replay(demand, cache_policies.build("lru"), SLOTS)
    return Row(
        "tokens a second of 58 layers x 8 experts through LRU",
        TOKENS / (time.process_time() - start),
        "",
        TOKENS / 30,
    )


def driver_rows() -> list[Row]:
    """Tokens a second through caches, link and CPU of a 32-layer model."""
    rng = np.random.default_rng(0)
    ids = np.argsort(rng.random((DRIVEN_TOKENS, DRIVEN_LAYERS, 64)) + 0.01 * np.arange(64), axis=-1)
    ids = ids[..., :6].astype(np.int32)
    demand = Demand(64, ids, np.ones_like(ids), np.zeros(DRIVEN_TOKENS, np.bool_))

    def lasting(seconds: float) -> Estimate:
        return Estimate(seconds, "x", "assumed", 0.0)

    part = [Part("x", "compute", lasting(1e-4))]
    costs = Costs(
        [part] * DRIVEN_LAYERS,
        [part] * DRIVEN_LAYERS,
        range(DRIVEN_LAYERS),
        part,
        part,
        Unit(lambda n: 3e-5 + 0.0 * n, lasting(0.0)),
        lasting(4e-4),
        cpu=Unit(lambda n: 2e-4 + 0.0 * n, lasting(0.0)),
    )
    rows = []
    for executor, prefetch in (
        ("device", "none"),
        ("cpu", "none"),
        ("list_schedule", "none"),
        ("device", "oracle"),
    ):
        plan = Offload(
            cache_policies.build("lru"),
            np.full(DRIVEN_LAYERS, 24),
            executors.build(executor),
            prefetchers.build(prefetch),
        )
        seconds = cpu_s(lambda plan=plan: simulate(demand, costs, plan), repeats=3)
        name = f"tokens a second of 32 layers, {executor}, prefetch {prefetch}"
        rows.append(Row(name, DRIVEN_TOKENS / seconds, "", 200))
    return rows


def main() -> None:
    show("Offload", [replay_row(), *driver_rows()])


if __name__ == "__main__":
    main()
