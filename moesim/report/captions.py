"""Sentences that state what a figure shows, computed from the numbers it draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.units import fmt_bytes, fmt_seconds

Document = Mapping[str, Any]

EVEN = 1.01
"""Loads within this factor of their mean are told as even."""


TOLD_GAP = 0.03
"""Stages that compute less than this below their mean are not told."""

OWN_WORK = {"compute", "cpu_compute", "pim_compute", "idle"}
"""Kinds of operations that move nothing between places."""


def breakdown(document: Document) -> str:
    """Largest operation and the share of communication."""
    rows = document["breakdown"]
    first = rows[0]
    comm = sum(row["fraction"] for row in rows if row["kind"] not in OWN_WORK)
    text = f"{_sentence(first['name'])}: {100 * first['fraction']:.0f} % of the critical path"
    return text + (f"; communication: {100 * comm:.0f} %" if comm >= 0.005 else "")


def sensitivity(document: Document) -> str:
    """Change that helps most."""
    best = min(document["sensitivity"], key=lambda row: row["change_fraction"])
    if best["change_fraction"] > -0.005:
        return "No single change of the machine gains more than 0.5 %"
    return f"{_sentence(best['label'])} would help most: {100 * best['change_fraction']:+.0f} %"


def expert_load(document: Document) -> str:
    """Hottest expert against the mean of its layer."""
    view = document["views"]["expert_load"]
    ratio = over_mean(view["tokens"])
    row, expert = np.unravel_index(int(ratio.argmax()), ratio.shape)
    layer = view["layers"][row]
    return f"Expert {expert} of layer {layer} gets {ratio.max():.1f} times the mean of its layer"


def rank_load(document: Document) -> str:
    """Busiest rank under each placement, averaged over layers; the worst layer of a single one."""
    view = document["views"]["rank_load"]
    variants = distinct(view["variants"])
    if len(variants) > 1:
        parts = [f"{variant['label']} {mean_imbalance(variant['tokens']):.2f}" for variant in variants]
        return "Busiest rank over the mean, averaged over layers: " + ", ".join(parts)
    worst = over_mean(variants[0]["tokens"]).max(axis=1)
    layer = view["layers"][int(worst.argmax())]
    return f"Busiest rank: {worst.mean():.2f} times the mean on average, {worst.max():.2f} in layer {layer}"


def comparison(document: Document) -> str:
    """Best placement against the first."""
    rows = document["views"]["comparison"]
    headline = document["headline"]
    if not all("metrics" in row for row in rows):
        first, last = rows[0], rows[-1]
        loads = [f"{row['label']} {row['imbalance_held_out']:.2f}" for row in (first, last)]
        return f"Busiest rank over the mean on unseen traffic: {', '.join(loads)}"
    times = [row["metrics"][headline]["value"] for row in rows]
    best = int(np.argmin(times))
    if best == 0:
        return f"No placement is faster than {rows[0]['label']}: {fmt_seconds(times[0])}"
    change = 100 * (times[best] / times[0] - 1)
    return f"Shortest {headline} with {rows[best]['label']}: {change:+.1f} % against {rows[0]['label']}"


def traffic(document: Document) -> str:
    """Bytes by link class and the busiest port."""
    view = document["views"]["traffic"]
    up, out = (np.asarray(view[name], dtype=float) for name in ("scale_up", "scale_out"))
    total = up.sum() + out.sum()
    if total == 0:
        return "No tokens are dispatched: every rank holds every token already"
    share = f"{100 * out.sum() / total:.0f} % of {fmt_bytes(total)} a step crosses NICs"
    if not out.sum():
        share = f"All {fmt_bytes(total)} of a step stay in the scale-up fabric"
    return f"{share}; {_busiest_port(out if out.sum() else up, view['scope'])}"


def links(document: Document) -> str:
    """Busiest link, and what it was with every part sound."""
    view = document["views"]["links"]
    worst = view["busiest"][0]
    text = f"Busiest link {worst['link']}: {fmt_seconds(worst['seconds'])} of bytes a step"
    if view.get("sound_busiest_s"):
        text += f", {fmt_seconds(view['sound_busiest_s'])} with every part sound"
    return text


def crowd(document: Document) -> str:
    """What others on the links cost, and the link where most of it was lost."""
    view = document["views"]["crowd"]
    longer = view["beside_s"] / view["alone_s"] - 1
    text = f"The step takes {100 * longer:.1f} % longer beside the traffic of others"
    worst = view["held_back"][0] if view["held_back"] else None
    if worst and worst["lost_s"] > 0:
        text += f"; it waited most for {worst['link']}"
    return text


def _busiest_port(pairs: NDArray[np.float64], scope: str) -> str:
    """Who sends or receives most, over the mean."""
    ports = {"sends": pairs.sum(axis=1), "receives": pairs.sum(axis=0)}
    verb, load = max(ports.items(), key=lambda item: float(item[1].max()))
    ratio = load.max() / load.mean()
    if ratio <= EVEN:
        return f"{scope}s send and receive evenly"
    return f"{scope} {int(load.argmax())} {verb} {ratio:.2f} times the mean"


def timeline(document: Document) -> str:
    """What the excerpt covers."""
    view = document["views"]["timeline"]
    layers = sorted({span[2] for row in view["rows"] for span in row["spans"] if span[2] is not None})
    span = "one step"
    if layers:
        span = f"layers {layers[0]} to {layers[-1]}" if len(layers) > 1 else f"layer {layers[0]}"
    ranks = len({row["rank"] for row in view["rows"]})
    which = "1 rank" if ranks == 1 else f"{ranks} ranks"
    return f"{which} through {span}: {fmt_seconds(view['end_s'] - view['start_s'])}"


def memory(document: Document) -> str:
    """Fullest rank."""
    view = document["memory"]
    fullest = min(view["per_rank"], key=lambda row: row["free_bytes"])
    used = view["capacity_bytes"] - fullest["free_bytes"]
    ranks = fullest["ranks"]
    who = f"Ranks {ranks} use" if "-" in ranks else f"Rank {ranks} uses"
    return f"{who} {fmt_bytes(used)} of {fmt_bytes(view['capacity_bytes'])}"


def pipeline(document: Document) -> str:
    """Share of the step in which the stages compute, and who computes least."""
    view = document["views"]["pipeline"]
    busy = np.zeros(view["num_stages"])
    for span in view["spans"]:
        busy[span[0]] += span[-1] - span[-2]
    share = 100 * busy / view["end_s"]
    text = f"{len(busy)} stages, {view['num_microbatches']} microbatches: stages compute"
    text += f" {share.mean():.0f} % of the step"
    uneven = share.min() < (1 - TOLD_GAP) * share.mean()
    return text + (f", stage {int(share.argmin())} only {share.min():.0f} %" if uneven else "")


def _sentence(name: str) -> str:
    """Name with a capital at its start."""
    return name[:1].upper() + name[1:]


def over_mean(tokens: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Each value over the mean of its row; rows without tokens are 0."""
    loads: NDArray[np.float64] = np.asarray(tokens, dtype=float)
    return np.asarray(loads / np.maximum(loads.mean(axis=1, keepdims=True), 1e-300))


def mean_imbalance(tokens: Sequence[Sequence[float]]) -> float:
    """Largest over mean of each layer, averaged over layers."""
    return float(over_mean(tokens).max(axis=1).mean())


def distinct(variants: Sequence[Any]) -> list[Any]:
    """Variants without repetition of a label; the last of a label stays."""
    return list({variant["label"]: variant for variant in variants}.values())
