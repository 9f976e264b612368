"""What single changes of the machine, the engine or the service would do to a served request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from moesim.errors import MoesimError
from moesim.scenario.result import Sensitivity
from moesim.scenario.sensitivity import knobs_of, scaled
from moesim.scenario.serving import Serving
from moesim.scenario.serving_offload import experts_away
from moesim.scenario.serving_pools import Pool
from moesim.serving.summary import latencies

METRIC = "mean_e2e_latency_s"
"""Queueing, prompts and decodes all move it, and it does not saturate."""


def changes_of(built: Serving) -> list[Sensitivity]:
    """Change of the mean latency for every knob, each a whole run, largest gain first."""
    # all of them with the experts of typical batches: what differs is the change
    built = replace(built, experts=None)
    found, before_s = [], mean_latency_s(built)
    for knob, label, changed in _changed(built):
        try:
            after_s = mean_latency_s(changed)
        except MoesimError:
            continue  # a change that this service cannot have
        found.append(Sensitivity(knob, label, METRIC, after_s, after_s / before_s - 1))
    return sorted(found, key=lambda change: change.change_fraction)


def mean_latency_s(built: Serving) -> float:
    """Mean latency of a request. [s]"""
    done = built.service(built.iterations(compared=True)).run()
    return float(latencies(built.workload, done).e2e_latency_s.mean())


def _changed(built: Serving) -> Iterator[tuple[str, str, Serving]]:
    away = built.pools[0].deployment.away is not None
    for knob in [] if away else knobs_of(built.scenario.cluster):
        cluster = scaled(built.scenario.cluster, knob.path.split("."), knob.factor)
        pools = tuple(
            replace(pool, deployment=replace(pool.deployment, cluster=cluster)) for pool in built.pools
        )
        yield f"cluster.{knob.path}", knob.label, replace(built, pools=pools)
    if away:
        yield from _purchases(built)
    first, last = built.pools[0], built.pools[-1]
    for field, label, factor in (
        ("max_num_batched_tokens", "token budget of an iteration x2", 2.0),
        ("max_num_batched_tokens", "token budget of an iteration halved", 0.5),
        ("num_blocks", "KV blocks x2", 2.0),
    ):
        pools = tuple(_with(pool, field, factor) for pool in built.pools)
        yield f"engine.{field}", label, replace(built, pools=pools)
    if first is last:
        more = (replace(first, count=first.count + 1),)
        yield "serving.instances", "one more instance", replace(built, pools=more)
        return
    yield "serving.prefill.instances", "one more prefill instance", replace(
        built, pools=(replace(first, count=first.count + 1), last)
    )  # fmt: skip
    yield "serving.decode.instances", "one more decode instance", replace(
        built, pools=(first, replace(last, count=last.count + 1))
    )  # fmt: skip


def _purchases(built: Serving) -> Iterator[tuple[str, str, Serving]]:
    """Faster memories and links, with the experts that are not on the device looked at anew."""
    resolved, pool = built.resolved, built.pools[0]
    node = built.scenario.cluster.node
    main = next(iter(node.device.memory))
    knobs = {
        f"device.memory.{main}.bandwidth_bytes_per_s": "device memory bandwidth x2",
        "host.dram.bandwidth_bytes_per_s": "host memory bandwidth x2",
    }
    if node.host.pcie is not None:
        knobs["host.pcie.bandwidth_bytes_per_s"] = "PCIe one generation on (x2)"
    for path, label in knobs.items():
        cluster = scaled(built.scenario.cluster, ["node", *path.split(".")], 2.0)
        changed = replace(resolved, scenario=built.scenario.model_copy(update={"cluster": cluster}))
        deployment = replace(pool.deployment, cluster=cluster)
        deployment = replace(deployment, away=experts_away(changed, deployment, pool.count))
        yield f"cluster.node.{path}", label, replace(built, pools=(replace(pool, deployment=deployment),))


def _with(pool: Pool, field: str, factor: float) -> Pool:
    """The pool with one limit of its engine multiplied; a budget stays large enough for its sequences."""
    value = round(getattr(pool.engine, field) * factor)
    if field == "max_num_batched_tokens":
        value = max(value, pool.engine.max_num_seqs)
    return replace(pool, engine=replace(pool.engine, **{field: value}))
