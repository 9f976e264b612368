"""Queues with known answers: single servers, a closed network, and a population that thinks."""

from dataclasses import dataclass

import numpy as np
import pytest

from moesim.evidence import rng_for
from moesim.serving.engine import Engine
from moesim.serving.iterations import Exact
from moesim.serving.policies import routers
from moesim.serving.service import InstanceSpec, Service
from moesim.serving.summary import duration_s, latencies
from moesim.serving.workload import Workload

SEEDS = 10
T_99 = 3.250
"""Two-sided 99 % point of Student's t with 9 degrees of freedom."""
MEAN_TOKENS = 10_000
SERVICE_S = 0.1


@dataclass(frozen=True)
class PerToken:
    """Iterations as long as their prompt tokens, so that lengths are service times."""

    num_ranks: int = 1

    def seconds(self, shapes):
        return shapes.prefill_tokens.sum(axis=1) * (SERVICE_S / MEAN_TOKENS)

    def overhead(self, shapes):
        return np.zeros(shapes.num_samples)


def one_by_one(frontend_s=0.0):
    """An engine that serves one request at a time, each in one iteration: a queue with a single server."""
    return Engine(num_blocks=10**6, max_num_batched_tokens=10**6, max_num_seqs=1, frontend_s=frontend_s)


def played(workload, engine, servers=1, router="random", seed=0):
    specs = [InstanceSpec(engine, Exact(PerToken(), engine))] * servers
    return Service(workload, specs, routers.build(router), seed=seed).run()


def exponential(rng, count):
    return np.maximum(np.rint(rng.exponential(MEAN_TOKENS, count)), 1).astype(np.int64)


def open_queue(load, *, fixed, seed, count=2000):
    rng = rng_for(seed, "queue")
    arrival = np.cumsum(rng.exponential(SERVICE_S / load, count))
    tokens = np.full(count, MEAN_TOKENS) if fixed else exponential(rng, count)
    workload = Workload.of(arrival, tokens, np.ones(count, dtype=np.int64), warmup=200)
    return latencies(workload, played(workload, one_by_one())).e2e_latency_s.mean()


def closed_rate(clients, *, servers, think_s, seed, count=1200):
    rng = rng_for(seed, "network")
    workload = Workload.of(
        np.zeros(count), exponential(rng, count), np.ones(count, dtype=np.int64), clients=clients, warmup=100
    )
    done = played(workload, one_by_one(think_s), servers, seed=seed)
    return (count - 100) / duration_s(workload, done)


def assert_agrees(samples, theory):
    """The 99 % confidence interval of the mean holds the theory, and says something."""
    half = T_99 * np.std(samples, ddof=1) / np.sqrt(len(samples))
    assert abs(np.mean(samples) - theory) <= half
    assert half < 0.15 * theory


def repairman_rate(clients, think_s):
    """Exact mean-value analysis of one exponential server and a population that thinks."""
    queue = rate = 0.0
    for population in range(1, clients + 1):
        wait_s = SERVICE_S * (1 + queue)
        rate = population / (think_s + wait_s)
        queue = rate * wait_s
    return rate


@pytest.mark.parametrize("load", [0.3, 0.6])
def test_poisson_arrivals_and_exponential_service(load):
    samples = [open_queue(load, fixed=False, seed=seed) for seed in range(SEEDS)]
    assert_agrees(samples, SERVICE_S / (1 - load))


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_poisson_arrivals_and_fixed_service(load):
    samples = [open_queue(load, fixed=True, seed=seed) for seed in range(SEEDS)]
    assert_agrees(samples, SERVICE_S * (1 + load / (2 * (1 - load))))


@pytest.mark.parametrize(("clients", "servers"), [(1, 1), (4, 2), (6, 3)])
def test_closed_network_of_equal_servers(clients, servers):
    samples = [closed_rate(clients, servers=servers, think_s=0.0, seed=seed) for seed in range(SEEDS)]
    assert_agrees(samples, clients * servers / ((clients + servers - 1) * SERVICE_S))


def test_population_that_thinks():
    samples = [closed_rate(5, servers=1, think_s=0.3, seed=seed) for seed in range(SEEDS)]
    assert_agrees(samples, repairman_rate(5, 0.3))
