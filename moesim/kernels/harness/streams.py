"""Work that is described by its traffic: norms, activations, gathers and scatters of tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from .cases import Call, Case, clones
from .dense import BYTES, torch_dtype
from .shapes import log_points


def elementwise(device: str, dtype_name: str, count: int) -> Iterator[Case]:
    """Residual addition with RMS norm (one eager torch call each step), gather, and scatter of tokens.

    ``moved_bytes`` is what a fused kernel would move: four rows a token for the norm, two for the
    gather, three for the weighted scatter.
    """
    ranges = {"tokens": (1, 8192), "hidden": (128, 8192)}
    kinds = (("torch_eager_norm", _norm, 4), ("torch_gather", _gather, 2), ("torch_scatter", _scatter, 3))
    for number, shape in enumerate(log_points(count, ranges, {"hidden": 16})):
        tokens, hidden = shape["tokens"], shape["hidden"]
        for source, made, passes in kinds:
            if source != "torch_eager_norm" and number % 3:
                continue
            size = float(tokens * hidden * BYTES[dtype_name])
            build = partial(made, device, dtype_name, tokens, hidden)
            yield Case(
                "elementwise", source, dtype_name, {"moved_bytes": passes * size}, build, passes * size
            )


def _norm(device: str, dtype_name: str, tokens: int, hidden: int, copies: int) -> list[Call]:
    import torch

    dtype = torch_dtype(dtype_name)
    weight = torch.ones(hidden, device=device).to(dtype)
    rows = torch.randn(tokens, hidden, device=device).to(dtype)

    def norm(x: Any, residual: Any) -> Any:
        total = x + residual
        wide = total.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return total, weight * (wide * scale).to(dtype)

    return [partial(norm, *pair) for pair in zip(clones(rows, copies), clones(rows, copies), strict=True)]


def _gather(device: str, dtype_name: str, tokens: int, hidden: int, copies: int) -> list[Call]:
    import torch

    rows = torch.randn(tokens, hidden, device=device).to(torch_dtype(dtype_name))
    order = torch.randperm(tokens, device=device)
    return [partial(torch.index_select, one, 0, order) for one in clones(rows, copies)]


def _scatter(device: str, dtype_name: str, tokens: int, hidden: int, copies: int) -> list[Call]:
    import torch

    rows = torch.randn(tokens, hidden, device=device).to(torch_dtype(dtype_name))
    weight = torch.rand(tokens, 1, device=device).to(torch_dtype(dtype_name))
    order = torch.randperm(tokens, device=device)

    def scatter(source: Any, target: Any) -> Any:
        return target.index_add_(0, order, source * weight)

    targets = clones(torch.zeros_like(rows), copies)
    return [partial(scatter, *pair) for pair in zip(clones(rows, copies), targets, strict=True)]
