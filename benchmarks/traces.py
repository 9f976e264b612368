"""Statistics and opening of a trace of 1 million tokens, 58 layers, top-8 of 256 experts."""

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from moesim.traces import read_trace, summarize, write_trace
from moesim.traces.routing import RoutingTrace
from moesim.traces.synthetic import generated_trace

TOKENS, LAYERS, EXPERTS, TOP_K = 1_000_000, 58, 256, 8
BLOCK = 8192


def write(path: Path) -> None:
    """Random choices; a block of tokens is repeated with experts renumbered."""
    rng = np.random.default_rng(0)
    weights = rng.gamma(1.0, size=(LAYERS, EXPERTS)).astype(np.float32)
    ids = np.empty((TOKENS, LAYERS, TOP_K), np.uint16)
    for start in range(0, TOKENS, BLOCK):
        part = ids[start : start + BLOCK]
        if start == 0:
            for layer in range(LAYERS):
                times = rng.standard_exponential((BLOCK, EXPERTS), dtype=np.float32) / weights[layer]
                part[:, layer] = np.argpartition(times, TOP_K, axis=1)[:, :TOP_K]
        else:
            part[:] = ids[: len(part)] ^ np.uint16(rng.integers(4))
    made: RoutingTrace = generated_trace(ids, EXPERTS, source="benchmark")
    write_trace(path, made)


def measure(path: Path) -> None:
    """Times in this process, and its largest memory."""
    start = time.perf_counter()
    trace = read_trace(path, verify=False)
    opened = time.perf_counter()
    summary = summarize(trace, np.random.default_rng(0))
    done = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    print(
        f"trace of {trace.num_tokens:,} tokens x {trace.num_layers} layers x top-{trace.top_k}: open "
        f"{(opened - start) * 1000:.1f} ms, statistics {done - opened:.1f} s, peak memory {peak:.2f} GiB "
        f"(mapped file included), Gini {summary.means()['gini_fraction']:.3f}"
    )


def main() -> None:
    """Write in one process, measure in another, so that writing does not count."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.safetensors"
        for step in ("write", "measure"):
            subprocess.run([sys.executable, __file__, step, str(path)], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        {"write": write, "measure": measure}[sys.argv[1]](Path(sys.argv[2]))
    else:
        main()
