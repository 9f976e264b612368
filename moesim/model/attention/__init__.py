"""Token mixers: one file a kind, all with the same members (:class:`Attention`).

What a kind must answer: how many parameters, which of them a tensor-parallel rank holds, what it
caches, and which operations it runs.
"""

from moesim.model.attention.base import Attention
from moesim.model.attention.gated_delta import GatedDeltaNet
from moesim.model.attention.grouped_query import GroupedQueryAttention
from moesim.model.attention.latent import Indexer, LatentAttention
from moesim.model.attention.mamba import Mamba
from moesim.model.attention.nothing import NoMixer

__all__ = [
    "Attention",
    "GatedDeltaNet",
    "GroupedQueryAttention",
    "Indexer",
    "LatentAttention",
    "Mamba",
    "NoMixer",
]
