"""Declared background flows to background streams of a program, on the links of a pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moesim.engine.program import Demand, Instruction, Part, Program, Receive, Run, Wait, demand_of
from moesim.errors import InputError, Problem
from moesim.evidence import Estimate
from moesim.network.demand import LinkPool, Transfer, ring_traffic
from moesim.scenario.background_schema import HOST, BackgroundFlow

KIND = "background"
FIELD = "network.background"


@dataclass(frozen=True)
class Background:
    """Runs on streams of their own that begin anew for as long as a step lasts.

    Attributes
    ----------
    streams : tuple of str
        One a flow; more where it has more transfers than the program has ranks.
    instructions : tuple of Run
        On those streams.
    """

    streams: tuple[str, ...] = ()
    instructions: tuple[Run, ...] = ()

    def beside(self, program: Program) -> Program:
        """The program with this background: its own instructions stay the first ones."""
        return replace(
            program,
            streams=(*program.streams, *self.streams),
            instructions=(*program.instructions, *self.instructions),
            background=self.streams,
        )


def alone(program: Program) -> Program:
    """The program without demands: as if nothing else were on its links."""
    if all(demand_of(instruction) is None for instruction in program.instructions):
        return program
    return replace(program, instructions=tuple(_alone(instruction) for instruction in program.instructions))


def _alone(instruction: Instruction) -> Instruction:
    if isinstance(instruction, Receive | Wait) or instruction.demand is None:
        return instruction
    return replace(instruction, demand=None)


def background_of(flows: Mapping[str, BackgroundFlow], pool: LinkPool, num_ranks: int) -> Background:
    """Background of a program of ``num_ranks`` ranks.

    Raises
    ------
    InputError
        Ranks that the cluster lacks, lists of unequal length, or ranks without a route: all problems at once.
    """
    streams: list[str] = []
    instructions: list[Run] = []
    problems: list[Problem] = []
    for name, flow in flows.items():
        try:
            transfers = _transfers(flow, pool, f"{FIELD}.{name}")
        except InputError as error:
            problems += error.problems
            continue
        for first in range(0, len(transfers), num_ranks):
            stream = f"{KIND} {name}" + (f" {first // num_ranks + 1}" if first else "")
            streams.append(stream)
            instructions += _runs(stream, name, flow, transfers[first : first + num_ranks], pool, num_ranks)
    if problems:
        raise InputError(problems)
    return Background(tuple(streams), tuple(instructions))


def _transfers(flow: BackgroundFlow, pool: LinkPool, field: str) -> list[Transfer]:
    """Transfers of a flow that run at once."""
    size = pool.topology.num_ranks
    sources = None if flow.source == HOST else _ranks(flow.source, size, f"{field}.source")
    if flow.kind != "pairs":
        assert sources is not None  # the schema allows host in pairs only
        if len(sources) < 2:
            raise InputError.at(field + ".source", flow.source, "two ranks or more")
        traffic = ring_traffic(sources, flow.bytes, size)
        if flow.kind == "all_to_all":
            traffic = np.zeros((size, size))
            traffic[np.ix_(sources, sources)] = flow.bytes / (len(sources) - 1)
            np.fill_diagonal(traffic, 0.0)
        loads = [pool.link_bytes(traffic)]
    else:
        targets = None if flow.destination == HOST else _ranks(flow.destination, size, f"{field}.destination")
        if sources is None or targets is None:
            ranks = sources if sources is not None else targets or []
            loads = [pool.host_copy(rank, flow.bytes, to_device=sources is None) for rank in ranks]
        else:
            loads = _pairs(sources, targets, flow, pool, field)
    return [pool.transfer(load, most_bytes_per_s=flow.bytes_per_s) for load in loads]


def _pairs(
    sources: Sequence[int], targets: Sequence[int], flow: BackgroundFlow, pool: LinkPool, field: str
) -> list[np.ndarray]:
    where = f"{field}.destination"
    if len(sources) != len(targets):
        accepted = f"as many ranks as source has ({len(sources)})"
        raise InputError.at(where, flow.destination, accepted)
    same = [rank for rank, other in zip(sources, targets, strict=True) if rank == other]
    if same:
        raise InputError.at(where, same[0], "another rank than the source of its pair")
    loads = []
    for source, target in zip(sources, targets, strict=True):
        load = np.zeros(len(pool.names))
        for link, share in pool.shares(source, target):
            load[link] += share * flow.bytes
        loads.append(load)
    return loads


def _ranks(text: str, size: int, field: str) -> list[int]:
    """Ranks of ``0-7,12``."""
    found: list[int] = []
    for piece in text.split(","):
        low, dash, high = piece.strip().partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise InputError.at(field, text, "ranks such as 16-31 or 0,8, or host")
        found += range(int(low), int(high if dash else low) + 1)
    wrong = [rank for rank in found if rank >= size]
    if wrong or not found or len(set(found)) < len(found):
        raise InputError.at(field, text, f"different ranks of the cluster, 0 to {size - 1}")
    return found


def _runs(
    stream: str,
    name: str,
    flow: BackgroundFlow,
    transfers: Sequence[Transfer],
    pool: LinkPool,
    num_ranks: int,
) -> list[Run]:
    """One transfer on each of the first ranks, with its pauses around it."""
    ranks = np.arange(num_ranks) < len(transfers)
    demands = [pool.demand(transfer, np.array([rank]), num_ranks) for rank, transfer in enumerate(transfers)]
    most = max(demand.links.shape[1] for demand in demands if demand is not None)
    links, rates = np.full((num_ranks, most), -1, dtype=np.int64), np.zeros((num_ranks, most))
    for rank, demand in enumerate(demands):
        assert demand is not None  # every transfer crosses a link
        links[rank, : demand.links.shape[1]] = demand.links[rank]
        rates[rank, : demand.links.shape[1]] = demand.rate[rank]
    seconds = np.zeros(num_ranks)
    seconds[ranks] = [transfer.seconds for transfer in transfers]

    def run(lasting: float | np.ndarray, demand: Demand | None) -> Run:
        part = Part(name, KIND, Estimate(lasting, "send", "assumed", 0.0))
        return Run(stream, (part,), ranks=ranks, demand=demand)

    moving = run(seconds, Demand(pool.capacity_bytes_per_s, links, rates))
    before = [run(flow.start_s, None)] if flow.start_s else []
    after = [run(flow.pause_s - flow.start_s, None)] if flow.pause_s > flow.start_s else []
    return [*before, moving, *after]
