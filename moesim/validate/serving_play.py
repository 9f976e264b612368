"""A measured run played again: its clients in a closed loop on the deployment of its row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import rng_for
from moesim.serving.deployment import Deployment
from moesim.serving.engine import Hold
from moesim.serving.instances import engine_of, iterations_of
from moesim.serving.one_launch import Spread
from moesim.serving.policies import routers
from moesim.serving.service import InstanceSpec, Role, Transfer
from moesim.serving.service import Service as Simulated
from moesim.serving.workload import Workload
from moesim.units import PS_PER_S
from moesim.validate.serving_conventions import conventions
from moesim.validate.serving_points import Point
from moesim.validate.serving_service import Service

MOST_REQUESTS = 400
"""More requests than this tell nothing more: waves after the first are alike."""
LEAST_WAVES = 2


@dataclass(frozen=True, slots=True)
class Played:
    """Means over the requests of a run.

    Attributes
    ----------
    ttft_s, tpot_s : float
        Time to the first token; time of each further one. [s]
    decodes, context_tokens : float
        A typical batch of one attention rank, and the cached tokens of a sequence in it.
    """

    ttft_s: float
    tpot_s: float
    decodes: float
    context_tokens: float


def play(point: Point, service: Service) -> Played:
    """The row's clients on its service.

    Raises
    ------
    InfeasibleError
        A request of the row could never be admitted.
    """
    rule, launch = conventions().rule(point), conventions().launch(point)
    usual = conventions().requests_per_client
    waves = max(LEAST_WAVES, min(usual, MOST_REQUESTS // point.concurrency))
    prompt, answer = _lengths(point, rule.shortest, waves * point.concurrency)
    clients = point.concurrency
    starts = np.zeros(len(prompt))
    workload = Workload.of(starts, prompt, answer, clients=clients)
    roles: list[tuple[Deployment, int, Role]] = [(service.decode, 1, "both")]
    if service.is_disaggregated:
        roles = [
            (service.prefill, service.num_prefill, "prefill"),
            (service.decode, service.num_decode, "decode"),
        ]
    longest = point.input_tokens + point.output_tokens
    spread = Spread.of(prompt, answer)
    hold = launch.engine_hold() if launch else None
    specs = [
        spec for place in roles for spec in instances_of(*place, longest=longest, spread=spread, hold=hold)
    ]
    simulated = Simulated(
        workload, specs, routers.build("least_loaded", {}, field="router"), transfer=_transfer(service)
    )
    measures = simulated.run()
    arrival, first, last = (
        np.asarray(column, dtype=np.float64) / PS_PER_S
        for column in (measures.arrival_ps, measures.first_token_ps, measures.finish_ps)
    )
    ttft, tpot = first - arrival, (last - first) / (answer - 1)
    mean_ttft, mean_tpot = (_mean(values, clients, 1 / usual) for values in (ttft, tpot))
    delay_s = service.decode.profile.host.delivery_iterations * mean_tpot * service.decode.tokens_per_step
    ranks = service.num_decode * service.decode.num_ranks
    context = float(np.mean(prompt) + np.mean(answer) / 2)
    return Played(mean_ttft + delay_s, mean_tpot, max(clients / ranks, 1.0), context)


def _mean(values: NDArray[np.float64], clients: int, first_share: float) -> float:
    """Mean of a full run of which the first wave is ``first_share``, from a shorter one."""
    return float(first_share * values[:clients].mean() + (1 - first_share) * values[clients:].mean())


def _lengths(point: Point, shortest: float, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Prompt and answer tokens of each request."""
    draw = rng_for(0, "validate/lengths").uniform(shortest, 1.0, (2, count))
    prompt = np.maximum(np.rint(point.input_tokens * draw[0]), 1).astype(np.int64)
    answer = np.maximum(np.rint(point.output_tokens * draw[1]), 2).astype(np.int64)
    return prompt, answer


def instances_of(
    deployment: Deployment,
    count: int,
    role: Role,
    *,
    longest: int,
    spread: Spread,
    hold: Hold | None = None,
) -> list[InstanceSpec]:
    """Instances of a deployment for the clock.

    Parameters
    ----------
    deployment, count, role
        What, how many, and for which phase.
    longest : int
        Tokens of the longest sequence that they meet. [tokens]
    spread : Spread
        Of the caches that decode together.
    hold : Hold, optional
        When they look at new requests.
    """
    engine = engine_of(deployment, {"hold": hold})
    prices = iterations_of(deployment, engine, how="memo", longest=longest, spread=spread)
    return [InstanceSpec(engine, prices, deployment.num_ranks, role) for _ in range(count)]


def _transfer(service: Service) -> Transfer:
    """KV of a request over the network ports of the devices that hold it."""
    deployment = service.prefill
    fabric = deployment.costs.fabric
    if not service.is_disaggregated:
        return Transfer()
    rate = fabric.scale_up_bytes_per_s if deployment.cluster.num_domains == 1 else fabric.nic_rate
    return Transfer(fabric.scale_out_latency_s, deployment.cache_bytes_per_token() / rate)
