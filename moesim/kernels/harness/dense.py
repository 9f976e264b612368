"""Dense GEMM, router, element-wise and launch cases."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from .cases import Call, Case
from .shapes import log_points

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1, "fp8": 1}


def torch_dtype(name: str) -> Any:
    """The datatype as torch knows it."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def gemm(device: str, dtypes: list[str], count: int, largest: float) -> Iterator[Case]:
    """``y[rows, n] = x[rows, k] w[n, k]^T`` by ``torch.nn.functional.linear``, skinny to square."""
    import torch

    ranges: dict[str, tuple[float, float]] = {"rows": (1, 4096), "n": (64, 8192), "k": (64, 8192)}
    if device.startswith("cuda"):
        ranges = {"rows": (1, 16384), "n": (256, 28672), "k": (256, 28672)}
    for shape in log_points(count, ranges, {"n": 16, "k": 16}):
        rows, n, k = shape["rows"], shape["n"], shape["k"]
        if 2.0 * rows * n * k > largest:
            continue
        for name in dtypes:
            dtype = torch_dtype(name)

            def build(
                copies: int, rows: int = rows, n: int = n, k: int = k, dtype: Any = dtype
            ) -> list[Call]:
                x = torch.randn(rows, k, device=device).to(dtype)
                weights = [torch.randn(n, k, device=device).mul_(k**-0.5).to(dtype) for _ in range(copies)]
                return [partial(torch.nn.functional.linear, x, w) for w in weights]

            size = (n * k + rows * (n + k)) * BYTES[name]
            features = {"rows": rows, "n": n, "k": k, "count": 1}
            yield Case("gemm", "torch_linear", name, features, build, size)


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
            gates = [torch.randn(experts, hidden, device=device).to(dtype) for _ in range(copies)]

            def choose(gate: Any) -> Any:
                scores = torch.nn.functional.linear(x, gate).float().softmax(dim=-1)
                return torch.topk(scores, top_k, dim=-1)

            return [partial(choose, gate) for gate in gates]

        features = {"tokens": tokens, "hidden": hidden, "num_experts": experts, "top_k": top_k}
        yield Case("router", "torch_topk", dtype_name, features, build, hidden * experts * BYTES[dtype_name])


def elementwise(device: str, dtype_name: str, count: int) -> Iterator[Case]:
    """Residual addition and RMS norm: four rows of the model's width moved a token."""
    import torch

    dtype = torch_dtype(dtype_name)
    for shape in log_points(count, {"tokens": (1, 8192), "hidden": (128, 8192)}, {"hidden": 16}):
        tokens, hidden = shape["tokens"], shape["hidden"]

        def build(copies: int, tokens: int = tokens, hidden: int = hidden) -> list[Call]:
            weight = torch.ones(hidden, device=device).to(dtype)
            pairs = [
                (
                    torch.randn(tokens, hidden, device=device).to(dtype),
                    torch.randn(tokens, hidden, device=device).to(dtype),
                )
                for _ in range(copies)
            ]

            def norm(x: Any, residual: Any) -> Any:
                total = x + residual
                wide = total.float()
                scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
                return total, weight * (wide * scale).to(dtype)

            return [partial(norm, *pair) for pair in pairs]

        moved = 4.0 * tokens * hidden * BYTES[dtype_name]
        yield Case("elementwise", "torch_eager_norm", dtype_name, {"moved_bytes": moved}, build, moved / 2)


def launch(device: str) -> Iterator[Case]:
    """The smallest operation there is: what a call costs before any work."""
    import torch

    def build(copies: int) -> list[Call]:
        values = [torch.zeros(1, device=device) for _ in range(copies)]
        return [partial(value.add_, 1.0) for value in values]

    yield Case("launch", "torch_add", "fp32", {"num_kernels": 1}, build)
