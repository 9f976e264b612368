"""What a step and the traffic of others made of the links that they share, for reports."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.scenario.build import Built
from moesim.scenario.link_views import LABELS, MOST_LINKS
from moesim.scenario.simulate import Simulated

MOST_ROWS = 5

HOST_LABELS = {
    "host_out": "to the host",
    "host_in": "from the host",
    "host_memory": "host memory",
}


def crowd_view(built: Built, simulated: Simulated) -> dict[str, Any] | None:
    """Share of each link's reached rate that the step and others used, and the links that held it back.

    Of the median batch's latency program; None where nobody else is on the links.
    """
    links, use = built.machine.links, simulated.link_use
    if links is None or use is None:
        return None
    latency_s = float(simulated.nominal.latency_s[0])
    own, others = (part / (use.capacity * latency_s) for part in (use.carried, use.carried_beside))
    order = np.lexsort((-(own + others), -use.lost_s))[:MOST_ROWS]
    blocks = []
    for name, place in links.blocks.items():
        if place.stop - place.start <= MOST_LINKS and (own[place].any() or others[place].any()):
            block = {"name": name, "label": (LABELS | HOST_LABELS)[name]}
            blocks.append(block | {"own": _plain(own[place]), "others": _plain(others[place])})
    return {
        "note": "share of the rate that each link reaches, over one step of the median batch",
        "alone_s": simulated.alone_s,
        "beside_s": latency_s,
        "held_back": [
            {
                "link": links.names[link],
                "own_fraction": float(own[link]),
                "others_fraction": float(others[link]),
                "lost_s": float(use.lost_s[link]),
            }
            for link in order.tolist()
            if own[link] + others[link] > 0
        ],
        "blocks": blocks,
    }


def _plain(values: NDArray[np.float64]) -> list[float]:
    return [float(f"{value:.4g}") for value in values]
