"""What operations and bytes cost on a cluster, and who else is on its links."""

from __future__ import annotations

from dataclasses import dataclass

from moesim.hardware.schema import Cluster
from moesim.kernels.choose import cost_of
from moesim.kernels.cost import KernelCost
from moesim.network.demand import LinkPool
from moesim.network.exchanges.base import exchanges
from moesim.network.fabric import Communication, Fabric
from moesim.network.faults import Faults
from moesim.network.traffic import Deduplication
from moesim.scenario.background import Background, background_of
from moesim.scenario.schema import NetworkSection
from moesim.scenario.serving_schema import EngineSection
from moesim.serving.engine_cost import engine_cost
from moesim.serving.profiles import NEWEST, load_profile


@dataclass(frozen=True)
class Machine:
    """What operations and bytes cost: the part of a scenario that a sensitivity replaces.

    ``background`` is the traffic of others on ``links``; None without any.
    """

    cost: KernelCost
    fabric: Fabric
    links: LinkPool | None = None
    background: Background | None = None


def machine_of(
    cluster: Cluster,
    num_ranks: int,
    network: NetworkSection | None = None,
    faults: Faults | None = None,
    engine: EngineSection | None = None,
) -> Machine:
    """Costs and link classes of the first ``num_ranks`` devices of a cluster.

    With an engine named, operations are its kernels, in captured graphs; else the best fitted ones.
    """
    device = cluster.node.device
    cost = cost_of(device)
    if engine is not None:
        cost = engine_cost(
            device, load_profile(engine.name, engine.version or NEWEST, where="engine").kernels
        )
    section = network or NetworkSection()
    fabric = Fabric.of(cluster, num_ranks, communication_of(section), faults)
    if not section.background:
        return Machine(cost, fabric)
    links = LinkPool.of(cluster, fabric)
    return Machine(cost, fabric, links, background_of(section.background, links, num_ranks))


def communication_of(section: NetworkSection) -> Communication:
    """Algorithms that a section names."""
    given = section.model_dump(exclude={"background"})
    return Communication(**given | {"deduplicate": deduplication_of(section)})


def deduplication_of(section: NetworkSection) -> Deduplication:
    """What is sent once: as asked, else as the named exchange does, else once a rank."""
    if section.deduplicate != "auto":
        return section.deduplicate
    known = section.exchange in exchanges.names()
    return exchanges.classes[section.exchange].deduplicates if known else "rank"
