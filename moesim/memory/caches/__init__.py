"""Caches of experts: one mechanism, and policies that rank what is worth keeping."""

from moesim.memory.caches.cache import ExpertCache
from moesim.memory.caches.ranking import CachePolicy, Ranking, cache_policies
from moesim.memory.caches.replay import Replayed, replay

__all__ = ["CachePolicy", "ExpertCache", "Ranking", "Replayed", "cache_policies", "replay"]
