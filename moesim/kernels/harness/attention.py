"""Attention by ``scaled_dot_product_attention``: prefill and decode, grouped-query and latent shapes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from .cases import Call, Case
from .dense import BYTES, torch_dtype
from .shapes import log_points

HEADS = ((32, 8, 128), (16, 16, 128), (64, 4, 128), (8, 8, 64), (4, 4, 32), (32, 32, 64))
"""Query heads, key/value heads, head width."""


def prefill(device: str, dtype_name: str, count: int, largest: float) -> Iterator[Case]:
    """Causal attention of whole sequences."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    dtype = torch_dtype(dtype_name)
    ranges = {"sequences": (1, 16), "query": (16, 8192 if device.startswith("cuda") else 2048)}
    for number, shape in enumerate(log_points(count, ranges)):
        heads, kv_heads, width = HEADS[number % len(HEADS)]
        batch, length = shape["sequences"], shape["query"]
        if 4.0 * batch * heads * length * length * width > largest:
            continue

        def build(
            copies: int, b: int = batch, n: int = length, h: int = heads, g: int = kv_heads, d: int = width
        ) -> list[Call]:
            made = [
                [torch.randn(b, c, n, d, device=device).to(dtype) for c in (h, g, g)] for _ in range(copies)
            ]
            return [partial(attend, *t, is_causal=True, enable_gqa=h != g) for t in made]

        features = _features(batch, length, 0, heads, kv_heads, width)
        size = batch * length * width * (heads + 2 * kv_heads) * BYTES[dtype_name]
        yield Case("attention_prefill", "torch_sdpa", dtype_name, features, build, size)


def decode(device: str, dtype_name: str, count: int, largest_bytes: float) -> Iterator[Case]:
    """One query token of each sequence against its cache."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    dtype = torch_dtype(dtype_name)
    ranges = {"sequences": (1, 256 if device.startswith("cuda") else 64), "context": (16, 16384)}
    for number, shape in enumerate(log_points(count, ranges)):
        heads, kv_heads, width = HEADS[number % len(HEADS)]
        batch, length = shape["sequences"], shape["context"]
        size = 2.0 * batch * length * kv_heads * width * BYTES[dtype_name]
        if size > largest_bytes:
            continue

        def build(
            copies: int, b: int = batch, n: int = length, h: int = heads, g: int = kv_heads, d: int = width
        ) -> list[Call]:
            made: list[list[Any]] = [
                [torch.randn(b, c, m, d, device=device).to(dtype) for c, m in ((h, 1), (g, n), (g, n))]
                for _ in range(copies)
            ]
            return [partial(attend, *t, enable_gqa=h != g) for t in made]

        features = _features(batch, 1, length - 1, heads, kv_heads, width)
        del features["query_tokens"]
        yield Case("attention_decode", "torch_sdpa", dtype_name, features, build, size)


def _features(
    sequences: int, query: int, context: int, heads: int, kv_heads: int, width: int
) -> dict[str, float]:
    return {
        "num_sequences": sequences,
        "query_tokens": query,
        "context_tokens": context,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "qk_dim": width,
        "v_dim": width,
        "window": 0,
    }
