"""Dense GEMM in every datatype, router, and launch cases."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from .cases import Call, Case, clones
from .shapes import log_points

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8_x_int8": 1, "fp8": 1}
NARROW = ("int8_x_int8", "fp8")
"""Datatypes of the dense GEMM only."""


def torch_dtype(name: str) -> Any:
    """The datatype as torch knows it."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def gemm(device: str, dtypes: list[str], count: int, largest: float) -> Iterator[Case]:
    """``y[rows, n] = x[rows, k] w[n, k]^T``, skinny to square; also on one CPU thread."""
    import torch

    gpu = device.startswith("cuda")
    ranges: dict[str, tuple[float, float]] = {"rows": (1, 4096), "n": (64, 8192), "k": (64, 8192)}
    if gpu:
        ranges = {"rows": (1, 16384), "n": (256, 28672), "k": (256, 28672)}
    several = not gpu and torch.get_num_threads() > 1
    for number, shape in enumerate(log_points(count, ranges, {"n": 16, "k": 16})):
        rows, n, k = shape["rows"], shape["n"], shape["k"]
        if 2.0 * rows * n * k > largest:
            continue
        features = {"rows": rows, "n": n, "k": k, "count": 1}
        for name in dtypes:
            size = (n * k + rows * (n + k)) * BYTES[name]
            build = _narrow(device, name, rows, n, k) if name in NARROW else _wide(device, name, rows, n, k)
            source = {"int8_x_int8": "torch_int_mm", "fp8": "torch_scaled_mm"}.get(name, "torch_linear")
            yield Case("gemm", source, name, features, build, size)
            if several and number % 4 == 0:
                yield Case("gemm", f"{source}_1_thread", name, features, build, size, threads=1)


def _wide(device: str, name: str, rows: int, n: int, k: int) -> Any:
    import torch

    def build(copies: int) -> list[Call]:
        x = torch.randn(rows, k, device=device).to(torch_dtype(name))
        weight = torch.randn(n, k, device=device).mul_(k**-0.5).to(torch_dtype(name))
        return [partial(torch.nn.functional.linear, x, w) for w in clones(weight, copies)]

    return build


def _narrow(device: str, name: str, rows: int, n: int, k: int) -> Any:
    """Operands already quantised: the multiplication alone."""
    import torch

    def build(copies: int) -> list[Call]:
        if name == "int8_x_int8":
            x, w = (torch.randint(-9, 9, s, device=device, dtype=torch.int8) for s in ((rows, k), (n, k)))
            return [partial(torch._int_mm, x, weight.t()) for weight in clones(w, copies)]
        eight = torch.float8_e4m3fn
        x, w = (torch.randn(*s, device=device).to(eight) for s in ((rows, k), (n, k)))
        one = torch.ones((), device=device)
        scales = {"scale_a": one, "scale_b": one, "out_dtype": torch.bfloat16}
        return [partial(torch._scaled_mm, x, weight.t(), **scales) for weight in clones(w, copies)]

    return build


def router(device: str, dtype_name: str, count: int) -> Iterator[Case]:
    """Gate scores, softmax and top-k as the HF blocks do them."""
    import torch

    dtype = torch_dtype(dtype_name)
    ranges = {"tokens": (1, 4096), "hidden": (128, 8192), "num_experts": (8, 512)}
    for shape in log_points(count, ranges, {"hidden": 16, "num_experts": 8}):
        tokens, hidden, experts = shape["tokens"], shape["hidden"], shape["num_experts"]
        top_k = min(8, max(1, experts // 8))

        def build(
            copies: int,
            tokens: int = tokens,
            hidden: int = hidden,
            experts: int = experts,
            top_k: int = top_k,
        ) -> list[Call]:
            x = torch.randn(tokens, hidden, device=device).to(dtype)
            gates = torch.randn(experts, hidden, device=device).to(dtype)

            def choose(gate: Any) -> Any:
                scores = torch.nn.functional.linear(x, gate).float().softmax(dim=-1)
                weights, chosen = torch.topk(scores, top_k, dim=-1)
                return weights / weights.sum(dim=-1, keepdim=True), chosen

            return [partial(choose, gate) for gate in clones(gates, copies)]

        features = {"tokens": tokens, "hidden": hidden, "num_experts": experts, "top_k": top_k}
        yield Case("router", "torch_topk", dtype_name, features, build, hidden * experts * BYTES[dtype_name])


def launch(device: str) -> Iterator[Case]:
    """The smallest operation there is: what a call costs before any work."""
    import torch

    def build(copies: int) -> list[Call]:
        value = torch.zeros(1, device=device)
        return [partial(one.add_, 1.0) for one in clones(value, copies)]

    yield Case("launch", "torch_add", "fp32", {"num_kernels": 1}, build)
