"""What ``moesim place`` and ``moesim placement`` ask for, as a placement problem and traffic to judge on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moesim.errors import InputError, Problem

if TYPE_CHECKING:
    from moesim.placement import Problem as PlacementProblem
    from moesim.placement.engine_files import About
    from moesim.placement.unseen import Unseen
    from moesim.traces import RoutingTrace

NUM_BATCHES = 64
"""Batches of held-out traffic behind the imbalance per batch."""
Sampling = Literal["scattered", "contiguous"]


@dataclass(frozen=True)
class Slots:
    """Where experts can go, as asked on the command line."""

    ranks: int
    ranks_per_node: int | None = None
    groups: int | None = None
    slots: int | None = None
    redundant: int | None = None
    rank_slots: str | None = None
    speeds: str | None = None
    hosts: str | None = None
    as_placed: Any = None
    """Slots of a placement that is scored, ``(layers, ranks)``, when nothing else says how many."""


@dataclass(frozen=True)
class Judging:
    """What is fitted and what is judged on."""

    fit_fraction: float = 0.5
    fit_domain: str | None = None
    others: Sequence[str] = ()
    batch_tokens: int = 64
    num_batches: int = 16
    sampling: Sampling = "scattered"


@dataclass(frozen=True, eq=False)
class Traffic:
    """A trace cut into what methods may see and what they are judged on."""

    trace: RoutingTrace
    fit: RoutingTrace
    held_out: RoutingTrace
    domains: dict[str, Any] = field(default_factory=dict)


def traffic_of(name: str, judging: Judging) -> Traffic:
    """Trace by name or path, split by request; other domains as they are.

    Raises
    ------
    InputError
        No such trace or domain, or another trace of another shape.
    """
    from moesim.traces import check_against  # noqa: PLC0415

    loaded = read(name)
    seen = loaded if judging.fit_domain is None else loaded.select(domain=judging.fit_domain)
    fit, held_out = seen.split(judging.fit_fraction)
    domains = {}
    if judging.fit_domain is not None:
        present = {loaded.info.domains[index] for index in set(loaded.domain_index.tolist())}
        for other in loaded.info.domains:
            if other != judging.fit_domain and other in present:
                domains[other] = loaded.select(domain=other).counts().astype(float)
    for other in judging.others:
        trace = read(other)
        check_against(trace, num_experts=loaded.num_experts, num_layers=loaded.num_layers)
        domains[Path(other).stem] = trace.counts().astype(float)
    return Traffic(loaded, fit, held_out, domains)


def read(name: str) -> RoutingTrace:
    """Trace file, or a bundled one."""
    from moesim.files import find  # noqa: PLC0415
    from moesim.traces import read_trace  # noqa: PLC0415

    return read_trace(find(name, "traces", field="trace", suffixes=(".safetensors",)))


def problem_of(
    traffic: Traffic,
    asked: Slots,
    judging: Judging,
    seed: int,
    needs: Sequence[str] | None = None,
    **more: Any,
) -> PlacementProblem:
    """Problem of the fit part, with what is needed (default: all) of its scatter and pairs.

    Without slots or replicas: the fewest slots that hold every expert.
    """
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement import Problem as PlacementProblem  # noqa: PLC0415
    from moesim.placement.knowledge import TRAFFIC_PARTS, hops, traffic_parts  # noqa: PLC0415

    chosen = [name for name in ("slots", "redundant", "rank_slots") if getattr(asked, name) is not None]
    if len(chosen) > 1:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
        raise InputError([Problem(options, "say the same; accepted: one of them")])
    fit = traffic.fit
    loads = fit.counts().astype(float)
    more |= traffic_parts(
        fit,
        TRAFFIC_PARTS if needs is None else needs,
        rng_for(seed, "place/fit_batches"),
        batch_tokens=judging.batch_tokens,
        num_batches=judging.num_batches,
        sampling=judging.sampling,
    )
    more |= {
        "ranks_per_node": asked.ranks_per_node,
        "num_groups": asked.groups,
        "speeds": numbers(asked.speeds, "--speeds", asked.ranks),
    }
    links = hops(asked.ranks, asked.ranks_per_node)
    more |= {"link_costs": links, "rank_costs": _rank_costs(asked, links, fit.num_layers)}
    if asked.redundant is not None:
        return PlacementProblem.with_redundancy(loads, asked.ranks, asked.redundant, **more)
    if asked.rank_slots is not None:
        slots = numbers(asked.rank_slots, "--rank-slots", asked.ranks)
        return PlacementProblem.with_rank_slots(loads, np.asarray(slots).astype(np.int64), **more)
    if asked.as_placed is not None and not chosen:
        return PlacementProblem.with_rank_slots(loads, asked.as_placed, **more)
    slots_per_rank = asked.slots or -(-fit.num_experts // asked.ranks)
    return PlacementProblem(loads, asked.ranks, slots_per_rank, **more)


def unseen_of(traffic: Traffic, judging: Judging, seed: int) -> Unseen:
    """Held-out part with its batches, and the other domains."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.placement.unseen import Unseen  # noqa: PLC0415

    return Unseen.of(
        traffic.held_out,
        rng_for(seed, "place/batches"),
        batch_tokens=judging.batch_tokens,
        num_batches=NUM_BATCHES,
        sampling=judging.sampling,
        domains=traffic.domains,
    )


@dataclass(frozen=True)
class Sizes:
    """Bytes of what moves: a token on its way to experts, and the weights of an expert."""

    token_bytes: float
    expert_bytes: float


def sizes_of(traffic: Traffic, model: str | None, expert_dtype: str) -> Sizes | None:
    """Sizes of a model; without a name those of the trace's model, None where it is not a bundled one.

    Tokens travel in bf16.

    Raises
    ------
    InputError
        No such model or format, or a model of another number of experts.
    """
    from moesim.model import Dtypes, bytes_per_element, load  # noqa: PLC0415
    from moesim.model.load import bundled_name  # noqa: PLC0415
    from moesim.model.parameters import expert_bytes  # noqa: PLC0415

    name = model if model is not None else bundled_name(traffic.trace.info.model)
    if name is None:
        return None
    spec = load(name, field="--model")
    if spec.num_experts != traffic.trace.num_experts:
        if model is None:
            return None
        raise InputError.at(
            "--model", f"{spec.num_experts} experts", f"{traffic.trace.num_experts} as in the trace"
        )
    dtypes = Dtypes(experts=expert_dtype)
    layer = spec.layers[spec.moe_layers[0]]
    token = spec.routed_hidden * bytes_per_element(dtypes.activations)
    return Sizes(token, expert_bytes(layer, spec.hidden_size, dtypes))


def about_of(traffic: Traffic, ranks: int) -> About:
    """What engine files do not say of themselves."""
    from moesim.placement.engine_files import About  # noqa: PLC0415

    info = traffic.trace.info
    return About(info.num_experts, ranks, info.layer_indices, info.model)


def numbers(text: str | None, option: str, ranks: int) -> list[float] | None:
    """``'4,4,8,8'`` as one number a rank.

    Raises
    ------
    InputError
        Not numbers, or not as many as ranks.
    """
    if text is None:
        return None
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError([Problem(option, f"got {text!r}; accepted: numbers and commas")]) from None
    if len(found) != ranks:
        raise InputError([Problem(option, f"got {len(found)} numbers; accepted: {ranks}, one a rank")])
    return found


def _rank_costs(asked: Slots, links: Any, num_layers: int) -> Any:
    """Mean hops from the ranks that hold the tokens, ``(layers, ranks)``."""
    hosts = np.ones(asked.ranks)
    if asked.hosts is not None:
        hosts = np.asarray(numbers(asked.hosts, "--hosts", asked.ranks))
        if (hosts < 0).any() or hosts.sum() <= 0:
            message = f"got {asked.hosts!r}; accepted: shares >= 0 of the tokens, one a rank, not all 0"
            raise InputError([Problem("--hosts", message)])
    return np.tile(hosts / hosts.sum() @ links, (num_layers, 1))


def assignment(text: str) -> tuple[str, str]:
    """``'NAME=VALUE'`` as a pair."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError([Problem("--param", f"got {text!r}; accepted: NAME=VALUE")])
    return name, value


def methods_of(names: Sequence[str], params: Sequence[str]) -> dict[str, Any]:
    """Built methods by name; ``all`` is every registered one."""
    from moesim.placement import placement_methods  # noqa: PLC0415

    wanted = list(dict.fromkeys(placement_methods.names() if "all" in names else names))
    if params and len(wanted) != 1:
        raise InputError([Problem("--param", f"goes with one --method; got {', '.join(wanted)}")])
    given = dict(map(assignment, params))
    return {name: placement_methods.build(name, given, field="--method") for name in wanted}
