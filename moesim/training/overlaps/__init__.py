"""How dispatch, experts and combine of a layer lie beside one another: one small policy a file."""

from moesim.training.overlaps.base import Triple, TripleOverlap, span_s, triple_overlaps

__all__ = ["Triple", "TripleOverlap", "span_s", "triple_overlaps"]
