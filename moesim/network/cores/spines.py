"""Two-tier fat tree whose spine switches are told apart."""

from __future__ import annotations

from moesim.network.cores.base import Link, LinkPath, Wiring, cores


@cores.register("spines")
class Spines:
    """Every leaf linked to every spine; a path over each spine."""

    def __init__(self, wiring: Wiring) -> None:
        self._wiring = wiring
        self._spines = wiring.scale_out.num_spines or 1

    def links(self) -> list[Link]:
        """Up-links leaf by leaf, then down-links leaf by leaf."""
        ratio = self._wiring.scale_out.oversubscription_ratio * self._spines
        up = [
            (f"leaf{leaf}", f"spine{spine}", float(down) / ratio)
            for leaf, down in enumerate(self._wiring.down_bytes_per_s)
            for spine in range(self._spines)
        ]
        return [*up, *((head, tail, rate) for tail, head, rate in up)]

    def paths(self, source: int, destination: int) -> list[LinkPath]:
        """One over each spine."""
        back = self._wiring.num_leaves * self._spines
        spines = range(self._spines)
        return [(source * self._spines + s, back + destination * self._spines + s) for s in spines]
