"""Hypothesis strategies shared by the property tests.

Hypothesis draws the shape of a program (and shrinks it); numbers in arrays come from a generator whose seed
it draws, which is many times faster than drawing them one by one.
"""

from dataclasses import replace

import numpy as np
from hypothesis import strategies as st

from moesim.engine import (
    Durations,
    Meet,
    Part,
    Program,
    Receive,
    Resource,
    Run,
    Send,
    Wait,
    participants,
)
from moesim.evidence import Estimate
from moesim.units import PS_PER_S

DURATION_PS_MAX = 9  # small, so that ties and zeros are common
generators = st.integers(0, 2**32 - 1).map(np.random.default_rng)


def part(seconds=0.0, name="work", family="work", sigma=0.0):
    return Part(name, "compute", Estimate(seconds, family, "assumed", sigma))


def part_of_ps(picoseconds, **named):
    return part(np.asarray(picoseconds, dtype=np.float64) / PS_PER_S, **named)


@st.composite
def stream_programs(draw, *, resources=False, ranks_max=6, length_max=20):
    """Valid programs: runs and waits with and without masks, meetings, messages, perhaps resources."""
    num_ranks = draw(st.integers(1, ranks_max))
    streams = ("compute", "comm", "copy")[: draw(st.integers(1, 3))]
    rng = draw(generators)
    mail = {}
    instructions = []
    for _ in range(draw(st.integers(0, length_max))):
        kinds = ["run", "run"]
        kinds += ["meet", "meet", "send", "send"] if num_ranks > 1 else []
        kinds += ["wait", "wait"] if len(streams) > 1 else []
        kinds += ["receive", "receive"] if mail else []
        kind = draw(st.sampled_from(kinds))
        stream = draw(st.sampled_from(streams))
        layer = draw(st.integers(0, 1))
        if kind == "run":
            shared = _resource(rng, num_ranks) if resources and draw(st.booleans()) else None
            run = Run(
                stream, _parts(rng, num_ranks), layer, shared, _mask(rng, num_ranks, draw(st.booleans()))
            )
            instructions.append(run)
        elif kind == "meet":
            shape = draw(st.sampled_from(["world", "blocks", "stripes", "any"]))
            instructions.append(Meet(stream, _group(rng, num_ranks, shape), _parts(rng, num_ranks), layer))
        elif kind == "wait":
            on = draw(st.sampled_from([s for s in streams if s != stream]))
            instructions.append(Wait(stream, on, _mask(rng, num_ranks, draw(st.booleans())), layer))
        elif kind == "send":
            to = _peers(rng, num_ranks, draw(st.booleans()))
            for rank in np.flatnonzero(to >= 0).tolist():
                mail[int(to[rank]), rank] = mail.get((int(to[rank]), rank), 0) + 1
            instructions.append(Send(stream, to, _parts(rng, num_ranks), layer))
        else:
            instructions.append(_receive(mail, stream, num_ranks, rng))
    while mail:
        instructions.append(_receive(mail, streams[0], num_ranks, rng))
    return Program(num_ranks, streams, tuple(instructions)).check()


@st.composite
def durations_of(draw, program, *, num_samples=1):
    """Rows of every broadcast shape, mostly small and often zero."""
    rng = draw(generators)
    rows = [
        rng.integers(
            0, DURATION_PS_MAX + 1, (rng.choice([1, num_samples]), rng.choice([1, program.num_ranks]))
        )
        for _ in program.instructions
    ]
    return Durations(num_samples, Durations.from_rows(rows).rows)


def _parts(rng, num_ranks):
    sizes = [None if rng.random() < 0.5 else num_ranks for _ in range(rng.integers(0, 3))]
    return tuple(part_of_ps(rng.integers(0, DURATION_PS_MAX + 1, size), sigma=rng.random()) for size in sizes)


def _mask(rng, num_ranks, is_partial):
    """All ranks, or at least one of them."""
    if not is_partial:
        return None
    mask = rng.random(num_ranks) < 0.6
    mask[rng.integers(num_ranks)] = True
    return mask


def _resource(rng, num_ranks):
    return Resource(str(rng.choice(["link", "disk"])), rng.integers(-1, 2, num_ranks))


def _group(rng, num_ranks, shape):
    """Whole world, blocks, stripes, or anything; labels in any order, singles left out."""
    ranks, size = np.arange(num_ranks), rng.integers(2, num_ranks + 1)
    group = {
        "world": np.full(num_ranks, rng.integers(4)),
        "blocks": (7 * (ranks // size)) % 5,
        "stripes": ranks % (num_ranks // size),
        "any": rng.integers(-1, 3, num_ranks),
    }[shape]
    labels, counts = np.unique(group, return_counts=True)
    group = np.where(np.isin(group, labels[counts == 1]), -1, group)
    return group if (group >= 0).any() else np.zeros(num_ranks, dtype=np.int64)


def _peers(rng, num_ranks, is_shift):
    """A shift along the ranks, or anything; nobody writes to itself."""
    ranks = np.arange(num_ranks)
    to = ranks + rng.integers(1, num_ranks) if is_shift else rng.integers(-1, num_ranks, num_ranks)
    to = np.where((to == ranks) | (to >= num_ranks), -1, to)
    return to if (to >= 0).any() else np.where(ranks == 0, 1, -1)


def _receive(mail, stream, num_ranks, rng):
    """Takes at most one message for each rank out of ``mail``, in any order of senders."""
    sender = np.full(num_ranks, -1, dtype=np.int64)
    pairs = sorted(mail)
    for at in rng.permutation(len(pairs)).tolist():
        receiver, source = pairs[at]
        keep = (sender >= 0).any() and rng.random() < 0.5
        if sender[receiver] < 0 and not keep:
            sender[receiver] = source
            mail[receiver, source] -= 1
    for pair in [pair for pair, left in mail.items() if left == 0]:
        del mail[pair]
    return Receive(stream, sender)


def relabelled(program, new_rank):
    """The same program after renaming rank r to ``new_rank[r]``."""
    old_rank = np.argsort(new_rank)

    def moved(values):
        return values[old_rank]

    def renamed(peers):
        return moved(np.where(peers >= 0, new_rank[peers], -1))

    def of(what):
        if isinstance(what, Meet):
            return replace(what, group=moved(what.group))
        if isinstance(what, Send):
            return replace(what, to=renamed(what.to))
        if isinstance(what, Receive):
            return replace(what, sender=renamed(what.sender))
        return what if what.ranks is None else replace(what, ranks=moved(what.ranks))

    return replace(program, instructions=tuple(of(i) for i in program.instructions))


def work_ps(program, durations, sample=0):
    """Duration of every instruction on every rank that takes part, 0 elsewhere, ``(instruction, rank)``."""
    dense = durations.dense(program.num_ranks)[:, sample].copy()
    for index, what in enumerate(program.instructions):
        works = participants(what, program.num_ranks) & (not isinstance(what, Receive | Wait))
        dense[index][~works] = 0
    return dense
