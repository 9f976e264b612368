"""What is slow or dead: links below their rate, ports without a link, and who carries the bytes instead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from moesim.errors import InputError, Problem

if TYPE_CHECKING:
    from moesim.hardware.schema import Cluster

Speed = Annotated[float, Field(gt=0, le=1)]
SpeedOrDead = Annotated[float, Field(ge=0, le=1)]


class Faults(BaseModel):
    """Speed factors by number of the part; what is not named runs at full speed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    nic_speed: dict[int, SpeedOrDead] = Field(
        default_factory=dict,
        description="factor of a network port, counted node by node; 0: dead, the next live one serves",
    )
    scale_up_speed: dict[int, Speed] = Field(
        default_factory=dict, description="factor of a rank's link to its scale-up fabric"
    )
    uplink_speed: dict[int, Speed] = Field(
        default_factory=dict, description="factor of a leaf switch's links to the spine"
    )
    link_speed: dict[str, Speed] = Field(
        default_factory=dict,
        description="factor of any link by its name, such as 'leaf0 -> leaf1'; a run lists the busiest",
    )
    device_speed: dict[int, Speed] = Field(
        default_factory=dict, description="factor of a rank's arithmetic and memory"
    )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is wrong."""
        return not any(getattr(self, name) for name in type(self).model_fields)

    def check(self, cluster: Cluster) -> None:
        """Raise an InputError for parts that ``cluster`` does not have."""
        rails = cluster.node.num_rails
        sizes = {
            "nic_speed": cluster.num_nodes * rails,
            "scale_up_speed": cluster.num_devices,
            "device_speed": cluster.num_devices,
        }
        problems = [
            Problem(f"faults.{name}.{number}", f"no such part; accepted: 0 to {size - 1}")
            for name, size in sizes.items()
            for number in getattr(self, name)
            if not 0 <= number < size
        ]
        if problems:
            raise InputError(problems)

    def live_ports(self, cluster: Cluster) -> NDArray[np.int64]:
        """Network port that each rank sends through, ``(rank,)``: its own, or the node's next live one.

        Raises
        ------
        InputError
            A rank has no route out of its node: every port there is dead.
        """
        rails = max(cluster.node.num_rails, 1)
        ranks = np.arange(cluster.num_devices)
        port = np.asarray(cluster.node_of(ranks) * rails + cluster.rail_of(ranks), dtype=np.int64)
        dead = {number for number, speed in self.nic_speed.items() if speed == 0}
        replacement = np.arange(cluster.num_nodes * rails)
        for number in dead:
            node, rail = divmod(number, rails)
            others = [node * rails + (rail + step) % rails for step in range(1, rails)]
            live = next((other for other in others if other not in dead), None)
            if live is None:
                message = f"every port of node {node} is dead: its ranks have no route to other nodes"
                raise InputError([Problem("faults.nic_speed", message)])
            replacement[number] = live
        return replacement[port]

    def speeds(self, named: dict[int, float], size: int) -> NDArray[np.float64]:
        """Factor of each of ``size`` parts; parts beyond it are left out."""
        speeds = np.ones(size)
        for number, speed in named.items():
            if number < size:
                speeds[number] = speed
        return speeds
