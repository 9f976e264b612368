"""Figures of a service: latency distributions, time series, batches of instances, and points of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.report.style import (
    FAINT,
    HEAT,
    PALETTE,
    WORSE,
    Document,
    new_figure,
    short,
    theme,
    themed,
    time_axis,
    title,
)
from moesim.units import fmt_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CURVES = {
    "ttft_s": "time to first token",
    "tpot_s": "time per output token",
    "e2e_latency_s": "whole request",
}
LOADS = {"running": "running", "waiting": "waiting"}
WAITS = 0.5
"""Fewer waiting requests than this on average are told as none."""
FULL = 0.95
GOOD = 0.9
"""Share of good requests from which a run is told as meeting its objectives."""


@themed
def latency_curves(document: Document) -> Figure | None:
    """Share of requests within each latency, with the objectives."""
    view = document["views"].get("serving")
    if not view or not view["latency_curves"]:
        return None
    curves = view["latency_curves"]
    figure, axes = new_figure(2.7, columns=len(curves), sharey=True, squeeze=False)
    for place, (axis, (name, values)) in enumerate(zip(axes[0], curves.items(), strict=True)):
        shares = np.linspace(0, 100, len(values))
        axis.plot(values, shares, color=PALETTE[place], linewidth=1.8)
        median, tail = (float(np.interp(p, shares, values)) for p in (50, 99))
        axis.plot([median, tail], [50, 99], "o", color=PALETTE[place], markersize=4)
        limit = view["objectives"].get(name)
        high = max(values[-1], 1.05 * (limit or 0.0))
        left = median > high / 2
        axis.annotate(
            f"p50 {fmt_seconds(median)}",
            (median, 50),
            xytext=(-6 if left else 6, -4),
            textcoords="offset points",
            ha="right" if left else "left",
        )
        # above the curve, which never comes there
        axis.annotate(
            f"p99 {fmt_seconds(tail)}",
            (tail, 99),
            xytext=(0, 6),
            textcoords="offset points",
            ha="right" if tail > high / 2 else "left",
        )
        if limit is not None:
            axis.axvline(limit, color=WORSE, linewidth=1.2, linestyle="--")
            axis.annotate(
                "objective", (limit, 3), xytext=(-3, 0), textcoords="offset points", ha="right", color=WORSE
            )
        axis.set_xlim(0, high * 1.04)
        axis.set_ylim(-4, 116)
        time_axis(axis.xaxis, high, CURVES[name])
    axes[0][0].set_ylabel("requests within (%)")
    title(figure, _latency_message(document))
    return figure


def _latency_message(document: Document) -> str:
    metrics = document["metrics"]
    parts = [
        f"{label} p50 {fmt_seconds(metrics[f'p50_{name}']['value'])}, "
        f"p99 {fmt_seconds(metrics[f'p99_{name}']['value'])}"
        for name, label in (("ttft_s", "First token"), ("tpot_s", "each further one"))
        if f"p50_{name}" in metrics
    ]
    good = metrics["good_fraction"]["value"]
    objectives = document["views"]["serving"]["objectives"]
    told = f"; {100 * good:.0f} % of requests are good" if objectives else ""
    return "; ".join(parts) + told


@themed
def service_over_time(document: Document) -> Figure | None:
    """Tokens a second, requests in batches and queues, and use of the KV cache."""
    view = document["views"].get("serving")
    if not view or len(view["running"]) < 2:
        return None
    routed = view.get("expert_imbalance")
    figure, axes = new_figure(6.0 if routed else 4.6, rows=4 if routed else 3, sharex=True)
    times = (np.arange(len(view["running"])) + 0.5) * view["bin_s"]
    rates, loads, cache = axes[:3]
    if routed:
        ratio = np.array(routed)
        axes[3].plot(
            times[: len(ratio)],
            np.where(ratio > 0, ratio, np.nan),
            color=PALETTE[1],
            linewidth=1.3,
            label="largest over mean rank",
        )
        axes[3].set_ylabel("expert load")
        axes[3].set_ylim(1)
    for place, (name, label) in enumerate(
        (("output_tokens_per_s", "output"), ("prompt_tokens_per_s", "prompt"))
    ):
        rates.plot(times, view[name], color=PALETTE[place], linewidth=1.3, label=label)
    rates.set_ylabel("tokens/s")
    rates.set_ylim(0)
    for place, (name, label) in enumerate(LOADS.items()):
        loads.fill_between(times, view[name], color=PALETTE[(0, 3)[place]], alpha=0.55, label=label, lw=0)
    loads.set_ylabel("requests")
    loads.set_ylim(0)
    cache.plot(
        times, 100 * np.array(view["kv_use_fraction"]), color=PALETTE[2], linewidth=1.3, label="KV blocks"
    )
    hit = [t for t, count in zip(times, view["preemptions"], strict=True) if count]
    if hit:
        cache.plot(
            hit, [100.0] * len(hit), "v", color=WORSE, markersize=4, label="preemptions", clip_on=False
        )
    cache.set_ylabel("in use (%)")
    cache.set_ylim(0, 105 if hit or max(view["kv_use_fraction"]) > FULL / 2 else None)
    axes[-1].set_xlabel("time (s)")
    _mark_changes(view, axes[0], axes)
    for axis in axes:
        axis.legend(loc="lower right", bbox_to_anchor=(1.0, 0.96), ncols=2)
        axis.grid(axis="y", color=FAINT, alpha=0.25)
    title(figure, _load_message(view))
    return figure


def _mark_changes(view: dict[str, Any], top: Any, axes: Sequence[Any]) -> None:
    """What happened to instances: a line through all strips, its words above the first."""
    for place, change in enumerate(sorted(view.get("changes", ()), key=lambda change: change["at_s"])):
        for axis in axes:
            axis.axvline(change["at_s"], color=WORSE, linewidth=1.0, linestyle=":")
        top.annotate(
            change["label"],
            (change["at_s"], 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, 2 + 11 * (2 - place % 3)),
            textcoords="offset points",
            fontsize=8,
            color=WORSE,
        )


def _load_message(view: dict[str, Any]) -> str:
    waiting, cache = float(np.mean(view["waiting"])), max(view["kv_use_fraction"])
    queue = f"{waiting:.3g} requests wait on average" if waiting > WAITS else "Hardly a request waits"
    room = "the KV cache fills up" if cache > FULL else f"the KV cache is at most {100 * cache:.0f} % full"
    count = sum(view["preemptions"])
    return f"{queue}; {room}" + (f"; {count:.0f} preemptions" if count else "")


@themed
def batches(document: Document) -> Figure | None:
    """Requests in the batch of every instance over time."""
    view = document["views"].get("serving")
    if not view or len(view["running"]) < 2:
        return None
    rows = view["instances"]
    columns = max(len(row["running"]) for row in rows)
    grid = np.zeros((len(rows), columns))
    for place, row in enumerate(rows):
        grid[place, : len(row["running"])] = row["running"]
    figure, axis = new_figure(1.3 + 0.32 * min(len(rows), 24))
    picture = axis.imshow(
        grid,
        aspect="auto",
        interpolation="nearest",
        cmap=HEAT,
        extent=(0, columns * view["bin_s"], len(rows) - 0.5, -0.5),
        vmin=0,
    )
    axis.set_yticks(range(len(rows)), [f"{place} {row['role']}" for place, row in enumerate(rows)])
    axis.set_ylabel("instance")
    axis.set_xlabel("time (s)")
    bar = figure.colorbar(picture, ax=axis, pad=0.01)
    bar.set_label("requests in batch")
    means = grid.mean(axis=1)
    text = f"{means[0]:.0f} requests in the batch on average, {grid.max():.0f} at most"
    if len(rows) > 1:
        text = (
            f"Batches of {means.min():.0f} to {means.max():.0f} requests on average, {grid.max():.0f} at most"
        )
    title(figure, text)
    return figure


def service_points(documents: Sequence[Document]) -> Figure | None:
    """Output tokens a second and device against tokens a second and user, one point a run of a service."""
    runs = [document for document in documents if "serving" in document["views"]]
    if len(runs) < 2:
        return None
    with theme():
        return _points(runs)


def _points(runs: Sequence[Document]) -> Figure:
    users, devices, good = (
        np.array([run["metrics"][name]["value"] for run in runs])
        for name in ("tokens_per_s_per_user", "output_tokens_per_s_per_device", "good_fraction")
    )
    figure, axis = new_figure(3.6)
    best = [
        place
        for place in np.argsort(-users, kind="stable").tolist()
        if not ((users >= users[place]) & (devices > devices[place])).any()
    ]
    axis.plot(users[best], devices[best], color=FAINT, linewidth=1.2, zorder=1)
    for place, run in enumerate(runs):
        colour = PALETTE[place % len(PALETTE)]
        face = colour if good[place] >= GOOD else "none"
        axis.scatter(
            users[place], devices[place], s=46, facecolor=face, edgecolor=colour, linewidth=1.6, zorder=2
        )
        axis.annotate(
            short(f"{place + 1} {run['scenario']['name']}"),
            (users[place], devices[place]),
            xytext=(7, 4),
            textcoords="offset points",
            fontsize=8.5,
        )
    axis.set_xlim(0, 1.35 * users.max())
    axis.set_ylim(0, 1.15 * devices.max())
    axis.set_xlabel("output tokens per second and user")
    axis.set_ylabel("per second and device")
    misses = int((good < GOOD).sum())
    told = f"{len(best)} of {len(runs)} runs are not bettered in both"
    title(figure, told + (f"; hollow: under {100 * GOOD:.0f} % of requests are good" if misses else ""))
    return figure
