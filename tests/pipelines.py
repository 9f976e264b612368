"""Pipelines that every registered schedule can run."""

from moesim.training.schedules.base import Geometry

CHUNKS = {
    "gpipe": 1,
    "1f1b": 1,
    "interleaved": 3,
    "interleaved_pairs": 3,
    "zb1p": 1,
    "zb_v": 2,
    "dualpipe": 2,
    "dualpipe_v": 2,
}


def geometry_of(name: str, num_stages: int, rounds: int) -> Geometry:
    """A pipeline that every schedule accepts: even stages, microbatches in whole groups of two a stage."""
    return Geometry(num_stages, 2 * rounds * num_stages, CHUNKS[name])
