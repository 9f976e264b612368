"""llama.cpp's importance matrix: how many tokens each expert saw while it was made.

Layout: GGUF with ``general.type = "imatrix"``; ``blk.<layer>.ffn_down_exps.weight.counts`` holds one
float32 an expert. The older ``.dat`` form keeps no counts of experts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moesim.traces.arrays import fault
from moesim.traces.formats import formats
from moesim.traces.gguf import read_gguf
from moesim.traces.interchange import Hints, build_counts
from moesim.traces.routing import ExpertCounts

_NAME = re.compile(r"blk\.(\d{1,6})\.ffn_down_exps\.weight\.counts")


@formats.register("llama_imatrix")
@dataclass(frozen=True)
class LlamaImatrix:
    """Importance matrix of llama.cpp (``.gguf``): counts of experts a layer, one step."""

    def read(self, path: Path, hints: Hints) -> ExpertCounts:
        """Counts of every mixture-of-experts layer."""
        pairs, tensors = read_gguf(path, lambda name: _NAME.fullmatch(name) is not None)
        if pairs.get("general.type") != "imatrix":
            raise fault(path, f"got {pairs.get('general.type')!r}; accepted: 'imatrix'"[:120], "general.type")
        by_layer = {}
        for name, array in tensors.items():
            match = _NAME.fullmatch(name)
            if match is not None:
                by_layer[int(match[1])] = array.ravel()
        if not by_layer or len({a.size for a in by_layer.values()}) > 1:
            raise fault(path, "accepted: ffn_down_exps counts of equal size in every layer", "counts")
        layers = sorted(by_layer)
        counts = np.stack([by_layer[layer] for layer in layers])[None].astype(np.float64)
        return build_counts(counts, layers, hints, path=path, said="importance matrix of llama.cpp")
