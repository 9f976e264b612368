"""Copies: inside device memory, and between host and device where there are two memories."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from .cases import Call, Case
from .shapes import log_points


def copies(device: str, count: int, largest_bytes: float) -> Iterator[Case]:
    """Device to device always; host to device and back, pinned and pageable, on a GPU."""
    import torch

    kinds = [("d2d", 0)]
    if device.startswith("cuda"):
        kinds += [(direction, pinned) for direction in ("h2d", "d2h") for pinned in (0, 1)]
    for shape in log_points(count, {"bytes": (4096, largest_bytes)}, {"bytes": 4096}):
        size = shape["bytes"]
        for direction, pinned in kinds:

            def build(
                number: int, size: int = size, direction: str = direction, pinned: int = pinned
            ) -> list[Call]:
                here = "cpu" if direction == "h2d" else device
                there = "cpu" if direction == "d2h" else device
                pairs = []
                for _ in range(number):
                    source = torch.zeros(size, dtype=torch.uint8, device=here)
                    target = torch.zeros(size, dtype=torch.uint8, device=there)
                    if pinned:
                        source, target = (
                            t.pin_memory() if t.device.type == "cpu" else t for t in (source, target)
                        )
                    pairs.append((source, target))
                return [partial(target.copy_, source, non_blocking=True) for source, target in pairs]

            features = {"bytes": size, "pinned": pinned}
            labels = {"direction": direction}
            yield Case("copy", "torch_copy", "uint8", features, build, 2.0 * size, labels)
