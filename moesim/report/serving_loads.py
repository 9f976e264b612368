"""Services under growing load, side by side: up to where each of them meets its objectives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

from moesim.report.style import FAINT, PALETTE, Document, new_figure, short, theme, title

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOADS = {"rate_per_s": "requests that arrive per second", "concurrency": "clients"}
"""Fields of a workload that say how much is asked for, and what an axis calls them."""
GOOD = 0.9
"""Share of good requests from which a run is told as meeting its objectives."""
GOODPUT = "goodput_requests_per_s"


@dataclass(frozen=True)
class Loaded:
    """Runs of one service, by rising load."""

    name: str
    loads: tuple[float, ...]
    runs: tuple[Document, ...]

    @property
    def num_devices(self) -> int:
        """Devices of the service."""
        metrics = self.runs[0]["metrics"]
        whole, each = (
            metrics[name]["value"] for name in ("output_tokens_per_s", "output_tokens_per_s_per_device")
        )
        return round(whole / each) if each else 0

    @property
    def highest_good(self) -> float | None:
        """Highest load up to which all runs meet the objectives; None where the lowest misses them."""
        found = None
        for load, run in zip(self.loads, self.runs, strict=True):
            if run["metrics"]["good_fraction"]["value"] < GOOD:
                break
            found = load
        return found


def services(documents: Sequence[Document], field: str) -> list[Loaded]:
    """Runs that differ in nothing but their load and name, together; those with one load left out."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        workload = document["scenario"].get("workload") or {}
        if "serving" not in document["views"] or not isinstance(workload.get(field), int | float):
            continue
        groups.setdefault(_key(document["scenario"], field), []).append(document)
    found = []
    for runs in groups.values():
        ordered = sorted(runs, key=lambda run: float(run["scenario"]["workload"][field]))
        loads = tuple(float(run["scenario"]["workload"][field]) for run in ordered)
        if len(set(loads)) > 1:
            found.append(Loaded(_name(ordered), loads, tuple(ordered)))
    return found


def service_loads(documents: Sequence[Document]) -> Figure | None:
    """Good requests a second against what is asked for, a line a service."""
    for field in LOADS:
        found = [s for s in services(documents, field) if GOODPUT in s.runs[0]["metrics"]]
        if found:
            with theme():
                return _lines(found, field)
    return None


def _lines(found: Sequence[Loaded], field: str) -> Figure:
    figure, axis = new_figure(3.4)
    most = max(load for service in found for load in service.loads)
    if field == "rate_per_s":
        axis.plot([0, most], [0, most], color=FAINT, linewidth=1.0, linestyle="--", label="all of them")
    for place, service in enumerate(found):
        metrics = [run["metrics"][GOODPUT] for run in service.runs]
        values = [metric["value"] for metric in metrics]
        colour = PALETTE[place % len(PALETTE)]
        label = short(f"{service.name} ({service.num_devices} devices)")
        axis.plot(service.loads, values, "o-", color=colour, linewidth=1.8, markersize=5, label=label)
        low, high = ([metric.get(end, metric["value"]) for metric in metrics] for end in ("low", "high"))
        axis.fill_between(service.loads, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.set_xlim(0, 1.05 * most)
    axis.set_ylim(0)
    axis.set_xlabel(LOADS[field])
    axis.set_ylabel("good requests per second")
    axis.legend(loc="upper left")
    title(figure, _message(found, field))
    return figure


def _message(found: Sequence[Loaded], field: str) -> str:
    unit = "/s" if field == "rate_per_s" else " clients"
    parts = []
    for service in found:
        best = service.highest_good
        told = f"up to {best:g}{unit}" if best is not None else f"not even at {service.loads[0]:g}{unit}"
        parts.append(f"{service.name} {told}")
    return f"{100 * GOOD:.0f} % of requests meet the objectives: {', '.join(parts)}"


def _key(scenario: dict[str, Any], field: str) -> str:
    kept = {name: value for name, value in scenario.items() if name not in {"name", "description"}}
    workload = {name: value for name, value in scenario["workload"].items() if name != field}
    return json.dumps(kept | {"workload": workload}, sort_keys=True)


def _name(runs: Sequence[Document]) -> str:
    names = [str(run["scenario"]["name"]) for run in runs]
    return str(commonprefix(names)).rstrip("_-.0123456789 ") or names[0]
