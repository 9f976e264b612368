"""A real loop that loads experts on demand, against a simulation from the times of its parts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moesim.engine.program import Part
from moesim.errors import InputError, Problem
from moesim.evidence import Estimate
from moesim.files.find import data_folders
from moesim.memory.demand import Demand
from moesim.offload import Costs, simulate
from moesim.offload.costs import Unit
from moesim.validate.claims import Claim
from moesim.validate.offload_sets.cases import offload_of

FIELDS = ("tier", "slots_per_layer", "num_experts", "tokens", "skipped_tokens", "parts", "token_s", "hits")


def measured_claims(seed: int) -> list[Claim]:
    """Hits and time of every recorded run (files ``*-offload.json`` beside the measured kernels)."""
    found = []
    for folder in data_folders("calibration"):
        for file in sorted((folder / "measurements").glob("*/*-offload.json")):
            for run in runs_of(file):
                found += _run(run, f"{file.parent.name}/{file.name}", seed)
        if found:
            break
    return found


def runs_of(file: Path) -> list[Mapping[str, Any]]:
    """Runs of a file.

    Raises
    ------
    InputError
        Not the JSON of the harness.
    """
    try:
        runs = json.loads(file.read_text())["runs"]
        missing = {name for run in runs for name in FIELDS if name not in run}
    except (ValueError, KeyError, TypeError) as error:
        message = f"{type(error).__name__}: {error}; accepted: a file of `python -m harness.offload`"
        raise InputError([Problem("", message, str(file))]) from None
    if missing:
        raise InputError([Problem("runs", f"lacks {', '.join(sorted(missing))}", str(file))])
    return list(runs)


def _run(run: Mapping[str, Any], source: str, seed: int) -> list[Claim]:
    ids = np.array(run["expert_ids"], np.int32)
    starts = np.zeros(len(ids), np.bool_)
    demand = Demand(run["num_experts"], ids, np.ones_like(ids), starts)
    layers = demand.num_layers
    parts = run["parts"]

    def part(name: str, seconds: float) -> list[Part]:
        return [Part(name, "compute", Estimate(seconds, "measured", "measured", 0.0))]

    costs = Costs(
        before=[part("attention and gate", parts["before_s"])] * layers,
        after=[[]] * layers,
        moe_layers=range(layers),
        first=[],
        last=part("head", parts["head_s"]),
        device=Unit(lambda tokens: tokens * parts["expert_s"], Estimate(0.0, "moe", "measured", 0.0)),
        copy=Estimate(parts["load_s"], "load", "measured", 0.0),
    )
    slots = np.full(layers, run["slots_per_layer"], np.int64)
    # the loop asks for an expert, waits for it, computes it: nothing overlaps
    done = simulate(demand, costs, replace(offload_of(slots), synchronous=True), seed=seed)
    name = f"real loop, {run['slots_per_layer']} slots, experts on {run['tier']}"
    token_s = done.pass_s(run["skipped_tokens"])
    return [
        Claim(f"{name}: hits", source, "experts", run["hits"], done.tally.hits, 0.0, absolute=True),
        Claim(f"{name}: time of a token", source, "s", run["token_s"], token_s, 0.2),
    ]
