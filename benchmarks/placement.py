"""Placement: imbalance, gap to the proven bound, and CPU seconds of every method.

Synthetic loads always; recorded routing where the development data folder is there
(``MOESIM_SHARED_DATA``, or ``../shared`` beside the repository).
"""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from measure import cpu_s, interpreter

from moesim.evidence import rng_for
from moesim.placement import Problem, best_bound, evaluate, gap_fraction, placement_methods

METHODS = ("linear", "greedy", "eplb", "eplb_swaps", "ilp")
SHAPES = (  # layers, experts, ranks, replicas
    (10, 64, 8, 0),
    (10, 64, 8, 8),
    (8, 32, 8, 0),
    (8, 32, 8, 8),
    (58, 256, 32, 0),
    (58, 256, 32, 32),
)
RECORDED = (("gptoss20b_mmlu_test", 32), ("esft_dsv2lite_law", 64), ("esft_dsv2lite_translation", 64))


def synthetic(kind: str, layers: int, experts: int) -> np.ndarray:
    rng = rng_for(0, f"benchmark/placement/{kind}")
    if kind == "lognormal":
        return np.floor(1000 * np.exp(rng.normal(size=(layers, experts))))
    ranked = np.floor(100_000 / np.arange(1, experts + 1))
    return np.stack([rng.permutation(ranked) for _ in range(layers)])


def recorded() -> Iterator[tuple[str, np.ndarray]]:
    """Tokens per expert of recorded routing, ``(layers, experts)``."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MOESIM_SHARED_DATA", beside)) / "data" / "traces"
    for name, experts in RECORDED:
        path = folder / f"{name}.npz"
        if path.is_file():
            arrays = np.load(path, allow_pickle=False)
            ids = next(arrays[key] for key in arrays.files if arrays[key].ndim == 3)
            layers = [
                np.bincount(ids[:, i].ravel(), minlength=experts)[:experts] for i in range(ids.shape[1])
            ]
            yield name, np.stack(layers).astype(float)


def cases() -> Iterator[tuple[str, Problem]]:
    for kind in ("lognormal", "zipf"):
        for layers, experts, ranks, replicas in SHAPES:
            yield kind, Problem.with_redundancy(synthetic(kind, layers, experts), ranks, replicas)
    for name, loads in recorded():
        for ranks, replicas in ((8, 0), (8, 8), (16, 0), (16, 16)):
            yield name, Problem.with_redundancy(loads, ranks, replicas)


def plain_eplb(loads: np.ndarray, slots: int, ranks: int) -> np.ndarray:
    """EPLB's global balancing in loops over layers, as its published description goes; for its time."""
    layers, experts = loads.shape
    size = slots // ranks
    result = np.empty((layers, slots), np.int64)
    for layer in range(layers):
        copies, items = np.ones(experts), list(range(experts))
        for _ in range(slots - experts):
            hottest = int((loads[layer] / copies).argmax())
            copies[hottest] += 1
            items.append(hottest)
        weight = (loads[layer] / copies)[items]
        load, held = [0.0] * ranks, [[] for _ in range(ranks)]
        for item in np.argsort(-weight, kind="stable").tolist():
            rank = min((r for r in range(ranks) if len(held[r]) < size), key=load.__getitem__)
            held[rank].append(items[item])
            load[rank] += float(weight[item])
        result[layer] = np.concatenate(held)
    return result


def eplb_figures() -> None:
    """EPLB's own time beside that of plain loops, and EPLB with swaps and gaps, at DeepSeek-V3's shape."""
    loads = synthetic("lognormal", 58, 256)
    problem = Problem.with_redundancy(loads, 32, 32)
    solvers = {name: placement_methods.build(name) for name in ("eplb", "eplb_swaps")}
    rng = rng_for(0, "benchmark")
    own = cpu_s(lambda: solvers["eplb"].solve(problem, rng))
    plain = cpu_s(lambda: plain_eplb(loads, problem.num_slots, problem.num_ranks), repeats=3)
    whole = cpu_s(lambda: (solvers["eplb_swaps"].solve(problem, rng), best_bound(problem)))
    print("  58 x 256 on 32 ranks, 32 replicas")
    print(f"    EPLB {own:.3f} s, the same in plain loops {plain:.3f} s, with swaps and bounds {whole:.3f} s")


def affinity_figures() -> None:
    """Block descent at DeepSeek-V3's shape."""
    rng = rng_for(0, "benchmark/placement/affinity")
    scale = 1000 * np.exp(rng.normal(size=(57, 256, 1)))
    pairs = rng.dirichlet(np.full(256, 0.5), size=(57, 256)) * scale
    loads = np.concatenate([pairs.sum(axis=2), pairs[-1:].sum(axis=1)])
    problem = Problem(loads, 32, 8, transitions=pairs)
    found = []
    method = placement_methods.build("affinity")
    seconds = cpu_s(lambda: found.append(method.solve(problem, rng_for(0, "benchmark"))), repeats=1) / 1
    own = found[-1].own
    print("  affinity, 58 x 256 on 32 ranks, random transitions")
    print(f"    same-rank share {own.value:.4f}, bound {own.bound:.4f}, {seconds:.1f} s")


def main() -> None:
    warnings.simplefilter("error")
    eplb_figures()
    affinity_figures()
    print(f"placement: {interpreter()}; max/mean and gap over all layers, gap of the worst layer")
    for name, problem in cases():
        shape = f"{problem.num_layers} x {problem.num_experts} on {problem.num_ranks}"
        print(f"  {name}: {shape}, {problem.num_replicas} replicas")
        for method in METHODS:
            built, found = placement_methods.build(method), []
            seconds = cpu_s(
                lambda b=built, f=found, p=problem: f.append(b.solve(p, rng_for(0, "benchmark"))), repeats=1
            )
            solution = found[-1]
            judged, bound = (
                evaluate(problem.loads, solution.placement),
                best_bound(problem, solution.lower_bound),
            )
            gap, worst = (
                gap_fraction(judged.objective, bound.sum()),
                float((judged.largest / bound - 1).max()),
            )
            figures = f"{judged.imbalance_ratio:8.4f} {gap:9.3%} {worst:9.3%} {seconds:8.3f} s"
            print(f"    {method:<11} {figures}  {solution.notes[0] if method == 'ilp' else ''}".rstrip())


if __name__ == "__main__":
    main()
