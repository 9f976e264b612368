"""What an iteration takes beside one whose experts are all on the device, where some of them are not.

The request clock does not know caches and links: it is given this time by the tokens of an iteration, worked
out once by whoever knows them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.serving.tabulated import along

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ExpertsAway:
    """Experts outside the device.

    Attributes
    ----------
    tokens : ndarray, ``(point,)``
        New tokens of an iteration, rising, at least two. [tokens]
    decode_s, prefill_s : ndarray, ``(point,)``
        Added to an iteration of decodes, and to one with prompts. [s]
    hit_fraction : ndarray, ``(point,)``
        Look-ups of decodes that find their expert on the device. [-]
    device_bytes : float
        Of the experts that the device holds. [bytes]
    sigma : float
        Of ln(true / simulated) of the time. [-]
    """

    tokens: Floats
    decode_s: Floats
    prefill_s: Floats
    hit_fraction: Floats
    device_bytes: float
    sigma: float

    def seconds(self, tokens: Floats, prompts: NDArray[np.bool_]) -> Floats:
        """Time to add to iterations of so many tokens, 0 without any; of one shape with ``prompts``. [s]

        Below 0 where somebody else computes so many of the experts that the device is through earlier.
        """
        decode, prefill = (along(tokens, self.tokens, each) for each in (self.decode_s, self.prefill_s))
        added = np.where(prompts, prefill, decode)
        return np.asarray(np.where(tokens > 0, added, 0.0))
