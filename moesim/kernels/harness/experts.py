"""Grouped expert feed-forward over realistic token histograms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from .cases import Call, Case
from .dense import BYTES, torch_dtype
from .shapes import expert_counts, log_points

TILES = (16, 32, 64, 128)
HISTOGRAMS = ((0.0, 1.0), (0.8, 1.0), (1.2, 0.7), (0.8, 0.35))
"""Skew and share of experts touched: balanced, typical, skewed, few touched."""


def experts(device: str, dtype_name: str, count: int, largest_bytes: float) -> Iterator[Case]:
    """Gate, up, activation, down for each expert: a loop over touched experts, or one grouped kernel."""
    import torch

    ranges = {"rows": (1, 16384), "hidden": (128, 4096), "width": (64, 4096), "num_experts": (4, 128)}
    if not device.startswith("cuda"):
        ranges = {"rows": (1, 4096), "hidden": (128, 2048), "width": (48, 1536), "num_experts": (4, 64)}
    multiples = {"hidden": 16, "width": 16, "num_experts": 4}
    has_grouped = device.startswith("cuda") and hasattr(torch, "_grouped_mm") and dtype_name == "bf16"
    for number, shape in enumerate(log_points(count, ranges, multiples)):
        skew, share = HISTOGRAMS[number % len(HISTOGRAMS)]
        counts = expert_counts(shape["rows"], shape["num_experts"], skew, share, number)
        features = features_of(counts, shape)
        size = 3.0 * shape["hidden"] * shape["width"] * features["touched"] * BYTES[dtype_name]
        if 3.0 * shape["hidden"] * shape["width"] * shape["num_experts"] * BYTES[dtype_name] > largest_bytes:
            continue
        for source in ("torch_loop", "torch_grouped_mm") if has_grouped else ("torch_loop",):
            made = _builder(device, dtype_name, shape, counts, grouped=source == "torch_grouped_mm")
            yield Case("moe", source, dtype_name, features, made, size)


def features_of(counts: list[int], shape: dict[str, int]) -> dict[str, float]:
    """Columns of the moe family: shape and condensed histogram."""
    rows = sum(counts)
    features: dict[str, float] = {
        "tokens": rows,
        "hidden": shape["hidden"],
        "width": shape["width"],
        "num_experts_local": shape["num_experts"],
        "top_k": 1,
        "gated": 1,
        "rows": rows,
        "touched": sum(c > 0 for c in counts),
        "all_rows": rows,
    }
    return features | {f"padded_{tile}": sum(-(-c // tile) * tile for c in counts) for tile in TILES}


def _builder(device: str, dtype_name: str, shape: dict[str, int], counts: list[int], *, grouped: bool) -> Any:
    import torch
    from torch.nn.functional import linear, silu

    dtype = torch_dtype(dtype_name)
    hidden, width, num = shape["hidden"], shape["width"], shape["num_experts"]
    rows = sum(counts)

    def build(copies: int) -> list[Call]:
        x = torch.randn(rows, hidden, device=device).to(dtype)
        order = torch.randperm(rows, device=device)
        up = [
            torch.randn(num, 2 * width, hidden, device=device).mul_(hidden**-0.5).to(dtype)
            for _ in range(copies)
        ]
        down = [
            torch.randn(num, hidden, width, device=device).mul_(width**-0.5).to(dtype) for _ in range(copies)
        ]
        if grouped:
            offsets = torch.tensor(counts, device=device).cumsum(0).to(torch.int32)

            def together(u: Any, d: Any) -> Any:
                gate, value = torch._grouped_mm(x, u.transpose(-2, -1), offs=offsets).chunk(2, dim=-1)
                return torch._grouped_mm(silu(gate) * value, d.transpose(-2, -1), offs=offsets)

            return [partial(together, u, d) for u, d in zip(up, down, strict=True)]
        places = list(torch.split(order, counts))

        def loop(u: Any, d: Any) -> Any:
            out = torch.zeros_like(x)
            for expert, place in enumerate(places):
                if len(place):
                    gate, value = linear(x[place], u[expert]).chunk(2, dim=-1)
                    out.index_add_(0, place, linear(silu(gate) * value, d[expert]))
            return out

        return [partial(loop, u, d) for u, d in zip(up, down, strict=True)]

    return build
