"""Grouped expert feed-forward over realistic token histograms."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from .cases import Call, Case, clones
from .dense import BYTES, torch_dtype
from .shapes import expert_counts, log_points

TILES = (16, 32, 64, 128)
HISTOGRAMS = ((0.0, 1.0), (0.8, 1.0), (1.2, 0.7), (0.8, 0.35))
"""Skew and share of experts touched: balanced, typical, skewed, few touched."""
TOP_K = (1, 2, 4, 8)


def experts(device: str, dtype_name: str, count: int, largest_bytes: float) -> Iterator[Case]:
    """Gate, up, activation, down for each expert: a loop over touched experts, or one grouped kernel."""
    import torch

    gpu = device.startswith("cuda")
    ranges = {"rows": (1, 16384), "hidden": (128, 4096), "width": (48, 4096), "num_experts": (4, 128)}
    if not gpu:
        ranges = {"rows": (1, 8192), "hidden": (128, 2048), "width": (48, 2048), "num_experts": (4, 64)}
    multiples = {"hidden": 16, "width": 16, "num_experts": 4}
    has_grouped = gpu and hasattr(torch, "_grouped_mm") and dtype_name == "bf16"
    for number, shape in enumerate(log_points(count, ranges, multiples)):
        skew, share = HISTOGRAMS[number % len(HISTOGRAMS)]
        top_k = min(TOP_K[number // len(HISTOGRAMS) % len(TOP_K)], shape["num_experts"] // 2)
        tokens = max(1, round(shape["rows"] / top_k))
        # an expert sees a token once: enough experts must be open, and none has more than all tokens
        share = max(share, min(1.0, 2 * top_k / shape["num_experts"]))
        wanted = expert_counts(tokens * top_k, shape["num_experts"], skew, share, number)
        counts = [min(c, tokens) for c in wanted]
        features = features_of(counts, shape, tokens, top_k)
        weight = 3.0 * shape["hidden"] * shape["width"] * BYTES[dtype_name]
        if weight * shape["num_experts"] > largest_bytes:
            continue
        for source, builder in {"torch_loop": _loop, "torch_grouped_mm": _grouped}.items():
            if source == "torch_loop" or has_grouped:
                made = partial(builder, device, dtype_name, shape, counts, tokens)
                yield Case("moe", source, dtype_name, features, made, weight * features["touched"])


def features_of(counts: list[int], shape: dict[str, int], tokens: int, top_k: int) -> dict[str, float]:
    """Columns of the moe family: shape and condensed histogram."""
    rows = sum(counts)
    features: dict[str, float] = {
        "tokens": tokens,
        "hidden": shape["hidden"],
        "width": shape["width"],
        "num_experts_local": shape["num_experts"],
        "top_k": top_k,
        "gated": 1,
        "rows": rows,
        "touched": sum(c > 0 for c in counts),
        "all_rows": rows,
    }
    return features | {f"padded_{tile}": sum(-(-c // tile) * tile for c in counts) for tile in TILES}


def _weights(device: str, dtype_name: str, shape: dict[str, int], copies: int) -> Any:
    import torch

    hidden, width, num = shape["hidden"], shape["width"], shape["num_experts"]
    dtype = torch_dtype(dtype_name)
    up = torch.randn(num, 2 * width, hidden, device=device).mul_(hidden**-0.5).to(dtype)
    down = torch.randn(num, hidden, width, device=device).mul_(width**-0.5).to(dtype)
    return zip(clones(up, copies), clones(down, copies), strict=True)


def _loop(
    device: str, dtype_name: str, shape: dict[str, int], counts: list[int], tokens: int, copies: int
) -> list[Call]:
    """One expert after the other, as eager frameworks do: find its tokens, gather, compute, weigh, add."""
    import torch
    from torch.nn.functional import linear, silu

    x = torch.randn(tokens, shape["hidden"], device=device).to(torch_dtype(dtype_name))
    scores = torch.rand(tokens, device=device).to(x.dtype)
    chosen = torch.zeros(shape["num_experts"], tokens, dtype=torch.bool, device=device)
    for expert, number in enumerate(counts):
        chosen[expert, torch.randperm(tokens, device=device)[:number]] = True

    def loop(up: Any, down: Any) -> Any:
        out = torch.zeros_like(x)
        for expert in chosen.any(dim=1).nonzero():
            which = expert[0]
            (place,) = torch.where(chosen[which])
            gate, value = linear(x[place], up[which]).chunk(2, dim=-1)
            result = linear(silu(gate) * value, down[which]) * scores[place, None]
            out.index_add_(0, place, result)
        return out

    return [partial(loop, *w) for w in _weights(device, dtype_name, shape, copies)]


def _grouped(
    device: str, dtype_name: str, shape: dict[str, int], counts: list[int], tokens: int, copies: int
) -> list[Call]:
    """Rows already in expert order, two grouped products."""
    import torch
    from torch.nn.functional import silu

    del tokens
    x = torch.randn(sum(counts), shape["hidden"], device=device).to(torch_dtype(dtype_name))
    offsets = torch.tensor(counts, device=device).cumsum(0).to(torch.int32)

    def together(up: Any, down: Any) -> Any:
        gate, value = torch._grouped_mm(x, up.transpose(-2, -1), offs=offsets).chunk(2, dim=-1)
        return torch._grouped_mm(silu(gate) * value, down.transpose(-2, -1), offs=offsets)

    return [partial(together, *w) for w in _weights(device, dtype_name, shape, copies)]
