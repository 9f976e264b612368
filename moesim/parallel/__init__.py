"""How a model's work is split over ranks."""

from moesim.parallel.plan import Plan

__all__ = ["Plan"]
