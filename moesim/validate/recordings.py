"""Statistics of public routing recordings beside values computed from them by other code."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from moesim.errors import InputError, Problem
from moesim.traces.arrays import read_arrays
from moesim.traces.interchange import Hints, Request, build_trace
from moesim.traces.locality import segment_cover_fraction
from moesim.traces.routing import RoutingTrace
from moesim.traces.statistics import (
    entropy_fraction,
    gini_fraction,
    imbalance_ratio,
    independent_repeat_fraction,
    mutual_information_nats,
    rank_imbalance_ratio,
    repeat_fraction,
)
from moesim.validate.claims import Claim, Progress, published

FOLDER_VARIABLE = "MOESIM_SHARED_DATA"
SEGMENT_TOKENS = 16
_UNITS = {"mutual": "nat", "imbalance": "ratio", "ranks_4": "ratio", "ranks_8": "ratio", "ranks_16": "ratio"}


def claims(seed: int = 0, progress: Progress | None = None) -> list[Claim]:  # noqa: ARG001 - nothing random
    """One claim a recording and statistic, within half a unit of the last printed digit.

    Raises
    ------
    InputError
        The folder of recordings is not there.
    """
    said = os.environ.get(FOLDER_VARIABLE, "")
    folder = Path(said) / "traces"
    if not said or not folder.is_dir():
        got = f"names {said}, which holds no folder traces" if said else "is not set"
        message = f"{got}; accepted: a folder whose traces/ holds the recordings that recordings.yaml names"
        raise InputError([Problem(FOLDER_VARIABLE, message)])
    tree = published("recordings").data
    found = []
    for row in tree["recordings"]:
        if progress is not None:
            progress(row["file"])
        ours = _statistics(_recording(folder, row))
        for name, digits, value in zip(tree["columns"], tree["digits"], row["values"], strict=True):
            found.append(
                Claim(
                    name=f"{row['file']} {name}",
                    source=tree["sources"][row["source"]],
                    unit=_UNITS.get(name, "fraction"),
                    published=value,
                    simulated=ours[name],
                    tolerance=0.5 * 10.0**-digits,
                    absolute=True,
                )
            )
    return found


def _recording(folder: Path, row: dict[str, Any]) -> RoutingTrace:
    path = folder / f"{row['file']}.npz"
    arrays = read_arrays(path)
    ids = arrays[row.get("array", "expert_ids")].astype(np.int64)
    length = row.get("request_tokens")
    ends = np.arange(length, len(ids), length) if length else np.cumsum(arrays["seq_lens"].astype(int))[:-1]
    requests = [Request(part) for part in np.split(ids, ends)]
    hints = Hints(num_experts=row["experts"])
    layers = arrays.get("layer_ids", np.arange(ids.shape[1])).tolist()
    return build_trace(requests, layers, hints, path=path, said="")


def _statistics(trace: RoutingTrace) -> dict[str, float]:
    """Means over layers by column of the published table."""
    counts = trace.counts()
    cover = segment_cover_fraction(trace, SEGMENT_TOKENS, (1, 2)).mean(axis=1)
    return {
        "imbalance": float(imbalance_ratio(counts).mean()),
        "entropy": float(entropy_fraction(counts).mean()),
        "gini": float(gini_fraction(counts).mean()),
        **{f"ranks_{g}": float(rank_imbalance_ratio(counts, g).mean()) for g in (4, 8, 16)},
        "mutual": float(mutual_information_nats(trace.transitions()).mean()),
        "repeat": float(repeat_fraction(trace).mean()),
        "independent": float(independent_repeat_fraction(counts, trace.num_tokens).mean()),
        "cover_1k": float(cover[0]),
        "cover_2k": float(cover[1]),
    }
