"""Peak and bandwidth of the CPU at hand, as a device profile needs them.

Usage: ``python calibration/measure_cpu.py``; prints one JSON document. Each number is the best of
``REPEATS`` runs, since other work on the machine can only slow a run down.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

REPEATS = 20
MATRIX_SIZE = 2048
STREAM_BYTES = 1 << 28


def best_s(run: Callable[[], object]) -> float:
    """Shortest wall time of ``run`` over :data:`REPEATS` calls, after one to warm up."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_flops_per_s() -> float:
    """Rate of a square fp32 product with all threads of numpy's BLAS."""
    left = np.random.default_rng(0).random((MATRIX_SIZE, MATRIX_SIZE), dtype=np.float32)
    right, out = left.copy(), np.empty_like(left)
    return 2 * MATRIX_SIZE**3 / best_s(lambda: np.matmul(left, right, out=out))


def read_bytes_per_s(num_threads: int) -> float:
    """Rate at which ``num_threads`` threads together read a large fp32 array (dot product with itself)."""
    parts = np.array_split(np.ones(STREAM_BYTES // 4, dtype=np.float32), num_threads)
    with ThreadPoolExecutor(num_threads) as pool:
        return STREAM_BYTES / best_s(lambda: list(pool.map(lambda part: np.dot(part, part), parts)))


def main() -> None:
    """Measure and print."""
    num_cores = os.cpu_count() or 1
    report = {
        "num_cores": num_cores,
        "numpy": np.__version__,
        "peak_flops_per_s": {"fp32": gemm_flops_per_s()},
        "bandwidth_bytes_per_s": read_bytes_per_s(num_cores),
    }
    sys.stdout.write(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
