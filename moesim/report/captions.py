"""Sentences that state what a figure shows, computed from the numbers it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.units import fmt_bytes, fmt_quantity, fmt_seconds

Document = Mapping[str, Any]


def breakdown(document: Document) -> str:
    """Largest operation and the share of communication."""
    rows = document["breakdown"]
    first = rows[0]
    comm = sum(row["fraction"] for row in rows if row["kind"] != "compute")
    text = f"{first['name'].capitalize()} takes {100 * first['fraction']:.0f} % of the critical path"
    return text + (f", communication {100 * comm:.0f} %" if comm >= 0.005 else "")


def sensitivity(document: Document) -> str:
    """Change that helps most."""
    best = document["sensitivity"][0]
    if best["change_fraction"] > -0.005:
        return "No single change of the machine gains more than 0.5 %"
    return f"Most gained by: {best['label']} ({100 * best['change_fraction']:+.0f} %)"


def expert_load(document: Document) -> str:
    """Hottest expert against the mean of its layer."""
    view = document["views"]["expert_load"]
    tokens = np.asarray(view["tokens"], dtype=float)
    ratio = tokens / np.maximum(tokens.mean(axis=1, keepdims=True), 1e-300)
    row, expert = np.unravel_index(int(ratio.argmax()), ratio.shape)
    layer = view["layers"][row]
    return f"Expert {expert} of layer {layer} gets {ratio.max():.1f} times the mean of its layer"


def rank_load(document: Document) -> str:
    """Busiest rank before and after placement."""
    variants = document["views"]["rank_load"]["variants"]
    parts = [f"{variant['label']} {mean_imbalance(variant['tokens']):.2f}" for variant in variants]
    return "Busiest rank over the mean, averaged over layers: " + ", ".join(dict.fromkeys(parts))


def comparison(document: Document) -> str:
    """Best placement against the first."""
    rows = document["views"]["comparison"]
    headline = document["headline"]
    if not all("metrics" in row for row in rows):
        first, last = rows[0], rows[-1]
        return (
            f"{last['label'].capitalize()} carries {last['imbalance_held_out']:.2f} times the mean on unseen "
            f"traffic, {first['label']} {first['imbalance_held_out']:.2f}"
        )
    times = [row["metrics"][headline]["value"] for row in rows]
    best = int(np.argmin(times))
    change = 100 * (times[best] / times[0] - 1)
    return f"{rows[best]['label']} gives the shortest {headline}: {change:+.1f} % against {rows[0]['label']}"


def traffic(document: Document) -> str:
    """Bytes by link class and the busiest sender."""
    view = document["views"]["traffic"]
    up, out = (np.asarray(view[name], dtype=float) for name in ("scale_up", "scale_out"))
    total = up.sum() + out.sum()
    if total == 0:
        return "No tokens are dispatched: every rank holds every token already"
    share = f"{100 * out.sum() / total:.0f} % of {fmt_bytes(total)} a step crosses NICs"
    if not out.sum():
        share = f"All {fmt_bytes(total)} of a step stay in the scale-up fabric"
    ports = out if out.sum() else up
    sent = ports.sum(axis=1)
    busiest = int(sent.argmax())
    return (
        f"{share}; {view['scope']} {busiest} sends {sent.max() / max(sent.mean(), 1e-300):.2f} times the mean"
    )


def timeline(document: Document) -> str:
    """What the excerpt covers."""
    view = document["views"]["timeline"]
    layers = sorted({span[2] for row in view["rows"] for span in row["spans"] if span[2] is not None})
    span = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else "one layer"
    ranks = len({row["rank"] for row in view["rows"]})
    return f"{ranks} of the ranks through {span}, {fmt_seconds(view['end_s'] - view['start_s'])}"


def memory(document: Document) -> str:
    """Fullest rank."""
    view = document["memory"]
    fullest = min(view["per_rank"], key=lambda row: row["free_bytes"])
    used = view["capacity_bytes"] - fullest["free_bytes"]
    return f"Ranks {fullest['ranks']} use {fmt_bytes(used)} of {fmt_bytes(view['capacity_bytes'])}"


def mean_imbalance(tokens: Sequence[Sequence[float]]) -> float:
    """Largest over mean of each layer, averaged over layers."""
    loads: NDArray[np.float64] = np.asarray(tokens, dtype=float)
    return float((loads.max(axis=1) / np.maximum(loads.mean(axis=1), 1e-300)).mean())


def metric_text(metric: Mapping[str, Any]) -> str:
    """Value with its band: ``'48.7 ms (40.9 ms to 62.5 ms)'``."""
    text = fmt_quantity(metric["value"], metric["unit"])
    if "low" in metric:
        low, high = (fmt_quantity(metric[end], metric["unit"]) for end in ("low", "high"))
        text += f" ({low} to {high})"
    return text
