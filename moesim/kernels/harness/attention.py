"""Attention by ``scaled_dot_product_attention``: prefill and decode, grouped-query and latent shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from .cases import Call, Case, clones
from .dense import BYTES, torch_dtype
from .shapes import log_points

Heads = tuple[int, int, int, int]
GROUPED: tuple[Heads, ...] = (
    *((32, 8, 128, 128), (16, 16, 128, 128), (64, 4, 128, 128)),
    *((8, 2, 64, 64), (4, 4, 32, 32), (12, 4, 64, 64), (32, 32, 64, 64)),
)
"""Query heads, key/value heads, width of a query or key, width of a value."""
LATENT_PREFILL: tuple[Heads, ...] = ((16, 16, 192, 128), (128, 128, 192, 128), (32, 32, 192, 128))
LATENT_DECODE: tuple[Heads, ...] = ((16, 1, 576, 512), (128, 1, 576, 512), (32, 1, 576, 512))
"""Latent attention (arXiv:2405.04434) at several tensor-parallel degrees: expanded, and absorbed."""


def prefill(
    device: str, dtype_name: str, count: int, largest: float, family: str = "attention_prefill"
) -> Iterator[Case]:
    """Causal attention of whole sequences."""
    choices = LATENT_PREFILL if family == "mla_prefill" else GROUPED
    ranges = {"sequences": (1, 16), "query": (16, 8192 if device.startswith("cuda") else 2048)}
    for number, shape in enumerate(log_points(count, ranges)):
        heads, kv_heads, qk, v = choices[number % len(choices)]
        batch, length = shape["sequences"], shape["query"]
        if 2.0 * batch * heads * length * length * (qk + v) > largest:
            continue
        size = batch * length * (heads * qk + kv_heads * (qk + v)) * BYTES[dtype_name]
        features = _features(batch, 0, choices[number % len(choices)]) | {"query_tokens": length}
        shapes = [(batch, heads, length, qk), (batch, kv_heads, length, qk), (batch, kv_heads, length, v)]
        build = partial(_calls, device, dtype_name, shapes, is_causal=True)
        yield Case(family, "torch_sdpa", dtype_name, features, build, size)


def decode(
    device: str, dtype_name: str, count: int, largest_bytes: float, family: str = "attention_decode"
) -> Iterator[Case]:
    """One query token of each sequence against its cache."""
    choices = LATENT_DECODE if family == "mla_decode" else GROUPED
    ranges = {"sequences": (1, 256 if device.startswith("cuda") else 64), "context": (16, 16384)}
    for number, shape in enumerate(log_points(count, ranges)):
        heads, kv_heads, qk, v = choices[number % len(choices)]
        batch, length = shape["sequences"], shape["context"]
        size = float(batch * length * kv_heads * (qk + v) * BYTES[dtype_name])
        if size > largest_bytes or float(batch * heads * length * qk) > 8 * largest_bytes:
            continue
        features = _features(batch, length - 1, choices[number % len(choices)])
        shapes = [(batch, heads, 1, qk), (batch, kv_heads, length, qk), (batch, kv_heads, length, v)]
        build = partial(_calls, device, dtype_name, shapes)
        yield Case(family, "torch_sdpa", dtype_name, features, build, size)


def _calls(
    device: str, dtype_name: str, shapes: Sequence[tuple[int, ...]], copies: int, **options: Any
) -> list[Call]:
    import torch
    from torch.nn.functional import scaled_dot_product_attention as attend

    (_, heads, *_), (_, kv_heads, *_) = shapes[0], shapes[1]
    tensors = [torch.randn(*shape, device=device).to(torch_dtype(dtype_name)) for shape in shapes]
    sets = zip(*(clones(tensor, copies) for tensor in tensors), strict=True)
    return [partial(attend, *one, enable_gqa=heads != kv_heads, **options) for one in sets]


def _features(sequences: int, context: int, heads: Heads) -> dict[str, float]:
    return {
        "num_sequences": sequences,
        "context_tokens": context,
        "num_heads": heads[0],
        "num_kv_heads": heads[1],
        "qk_dim": heads[2],
        "v_dim": heads[3],
        "window": 0,
    }
