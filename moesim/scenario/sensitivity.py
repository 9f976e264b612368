"""Which knob moves the answer most: the same step again with one property of the machine changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from moesim.hardware.schema import Cluster
from moesim.kernels.histogram import ExpertLoad
from moesim.network.traffic import PortTokens
from moesim.scenario.build import Built
from moesim.scenario.machine import Machine, machine_of
from moesim.scenario.result import Sensitivity
from moesim.scenario.simulate import latency_s, period_s
from moesim.steps.layers import Lane
from moesim.steps.program import step_program
from moesim.steps.routing import RoutedBatch


@dataclass(frozen=True)
class Knob:
    """A property of the cluster and the factor it is multiplied by."""

    path: str
    label: str
    factor: float = 2.0


def knobs_of(cluster: Cluster) -> Iterator[Knob]:
    """Properties that ``cluster`` has, in a fixed order."""
    device = cluster.node.device
    main = next(iter(device.memory))
    bandwidth = "bandwidth_bytes_per_s"
    yield Knob(f"node.device.memory.{main}.{bandwidth}", "device memory bandwidth x2")
    yield Knob("node.device.peak_flops_per_s", "peak FLOP/s x2")
    yield Knob("node.device.launch_s", "kernel launch time halved", 0.5)
    if cluster.node.scale_up is not None:
        yield Knob(f"node.scale_up.{bandwidth}", "scale-up link bandwidth x2")
    if cluster.node.nic is not None and cluster.num_domains > 1:
        yield Knob(f"node.nic.{bandwidth}", "NIC bandwidth x2")


def sensitivities(
    built: Built,
    lanes: Sequence[Sequence[Lane]],
    headline: str,
    nominal_s: float,
    *,
    value_s: float,
    of_latency: bool,
) -> list[Sensitivity]:
    """Change of the step's time for every knob, largest effect first.

    Parameters
    ----------
    built : Built
    lanes : sequence of sequence of Lane
        The routed batch that is repeated, ``[stage][half]``.
    headline : str
        Name of the time that is watched.
    nominal_s : float
        Its value on this batch without change. [s]
    value_s : float
        The reported value. [s]
    of_latency : bool
        Watch the latency of a step instead of its steady-state period.
    """
    found = []
    for knob in knobs_of(built.scenario.cluster):
        cluster = scaled(built.scenario.cluster, knob.path.split("."), knob.factor)
        scenario = built.scenario
        ranks, engine = built.plan.num_devices, scenario.named_engine
        machine = machine_of(cluster, ranks, scenario.network, scenario.faults, engine)
        seconds = _seconds(built, machine, lanes, of_latency)
        found.append((f"cluster.{knob.path}", knob.label, seconds))
    if not built.scenario.faults.is_empty:
        scenario = built.scenario
        ranks, engine = built.plan.num_devices, scenario.named_engine
        sound = machine_of(scenario.cluster, ranks, scenario.network, engine=engine)
        found.append(("faults", "every part sound", _seconds(built, sound, lanes, of_latency)))
    if built.machine.background is not None:
        nobody = replace(built.machine, background=None)
        found.append(
            ("network.background", "nobody else on the links", _seconds(built, nobody, lanes, of_latency))
        )
    if any(lane.routed is not None for stage in lanes for lane in stage):
        even = [[_balanced(lane) for lane in stage] for stage in lanes]
        seconds = _seconds(built, built.machine, even, of_latency)
        found.append(("routing", "every rank given the mean load", seconds))
    # the knobs are turned on one batch; the headline is the mean over batches, changed in proportion
    rows = [
        Sensitivity(path, label, headline, value_s * seconds / nominal_s, seconds / nominal_s - 1)
        for path, label, seconds in found
    ]
    return sorted(rows, key=lambda row: row.change_fraction)


def scaled(description: Any, path: Sequence[str], factor: float) -> Any:
    """Copy of a frozen description with the number at ``path``, or every number of a mapping, multiplied."""
    if not path:
        if isinstance(description, dict):
            return {key: value * factor for key, value in description.items()}
        return description * factor
    head, *rest = path
    if isinstance(description, BaseModel):
        return description.model_copy(update={head: scaled(getattr(description, head), rest, factor)})
    return {**description, head: scaled(description[head], rest, factor)}


def _seconds(built: Built, machine: Machine, lanes: Sequence[Sequence[Lane]], of_latency: bool) -> float:
    interpreter = "vector" if machine.background is None else "events"
    step = step_program(built.stages(machine), lanes, built.overlap)
    watched = latency_s if of_latency else period_s
    return float(watched(step, interpreter, background=machine.background)[0])


def _balanced(lane: Lane) -> Lane:
    """The same lane with every rank's load and traffic replaced by the mean over ranks."""
    return lane if lane.routed is None else replace(lane, routed=balanced(lane.routed))


def balanced(batch: RoutedBatch) -> RoutedBatch:
    """Batch with the same totals spread evenly over the ranks."""

    def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.broadcast_to(values.mean(axis=-1, keepdims=True), values.shape)

    load = ExpertLoad(
        rows=mean(batch.load.rows),
        touched=mean(batch.load.touched),
        padded_rows={tile: mean(rows) for tile, rows in batch.load.padded_rows.items()},
    )
    ports = PortTokens(*(mean(getattr(batch.ports, field.name)) for field in fields(PortTokens)))
    # how even traffic lies on shared links is not known: ports alone are counted
    return replace(batch, load=load, ports=ports, shared=None, shared_back=None)
