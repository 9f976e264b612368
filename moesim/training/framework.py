"""What a training framework costs beside the model's kernels, as data."""

from __future__ import annotations

from functools import lru_cache

from pydantic import BaseModel, ConfigDict, Field

from moesim.evidence import Grade
from moesim.files import find, read_tree, validated
from moesim.training.blocks import LaunchCost

ROOM = "calibration/training"


class Framework(BaseModel):
    """Host costs of a framework.

    Attributes
    ----------
    launch_s : float
        Host time of one described operation launched eagerly, its module's bookkeeping included. [s]
    small_launch_s : float
        Host time of a bare small operation. [s]
    backward_ratio : float
        Kernels of a backward pass over those of its forward. [-]
    kernels : str
        Engine whose measured kernels stand for the framework's; ``default`` where a device has none of it.
    router_launches : int
        Small kernels of a MoE layer beyond those that are described. [-]
    checkpoint_launches : int
        Small operations' worth of host time to leave a region out and to run it again, beside its own. [-]
    sigma : float
        Of the host's time. [-]
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    name: str
    description: str
    launch_s: float = Field(gt=0)
    small_launch_s: float = Field(ge=0)
    backward_ratio: float = Field(gt=0)
    kernels: str
    router_launches: int = Field(ge=0)
    checkpoint_launches: int = Field(0, ge=0)
    sigma: float = Field(ge=0)
    grade: Grade
    sources: dict[str, str]

    def small_launches(self, count: float) -> float:
        """Small operations as launches of described ones, by host time. [-]"""
        return count * self.small_launch_s / self.launch_s

    def host(self, *, captured: bool = False) -> LaunchCost:
        """Launch costs; of a whole captured step none."""
        return LaunchCost(
            0.0 if captured else self.launch_s,
            self.backward_ratio,
            self.small_launches(self.checkpoint_launches),
            self.sigma,
            self.grade,
        )


@lru_cache
def load_framework(name: str) -> Framework:
    """Framework by name or path.

    Raises
    ------
    InputError
        Unknown name, or a file that is not one.
    """
    return validated(Framework, read_tree(find(name, ROOM, field="training.framework")))
