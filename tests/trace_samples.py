"""Small traces for tests."""

import os
from pathlib import Path

import numpy as np
import pytest

from moesim.traces import RoutingTrace, TraceInfo


def small_trace(
    *,
    tokens=60,
    layers=3,
    experts=8,
    top_k=2,
    requests=6,
    seed=0,
    domains=("prose", "code"),
    weights=True,
    empty=0.0,
):
    """Random but valid trace: requests of equal length, last third of each decoded."""
    rng = np.random.default_rng(seed)
    dtype = np.uint8 if experts <= 255 else np.uint16
    ids = rng.permuted(np.tile(np.arange(experts, dtype=dtype), (tokens, layers, 1)), axis=2)[..., :top_k]
    ids = np.where(rng.random(ids.shape) < empty, np.iinfo(dtype).max, ids).astype(dtype)
    length = -(-tokens // requests)
    row = np.arange(tokens)
    position = (row % length).astype(np.int32)
    request = (row // length).astype(np.int32)
    return RoutingTrace(
        info=TraceInfo("tiny", experts, tuple(range(1, layers + 1)), "test", tuple(domains), "2026-01-01"),
        expert_ids=ids,
        request_index=request,
        position=position,
        step_index=position,
        phase=(position >= length * 2 // 3).astype(np.uint8),
        domain_index=(request % len(domains)).astype(np.uint8),
        gate_weights=rng.random(ids.shape).astype(np.float16) if weights else None,
    )


def trace_of(ids, experts, *, lengths=None):
    """Trace of given ids; one request unless lengths are given."""
    ids = np.asarray(ids, np.uint8)
    lengths = np.array([len(ids)] if lengths is None else lengths)
    position = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    return RoutingTrace(
        info=TraceInfo("given", experts, tuple(range(ids.shape[1]))),
        expert_ids=ids,
        request_index=np.repeat(np.arange(lengths.size), lengths).astype(np.int32),
        position=position,
        step_index=position,
        phase=np.zeros(len(ids), np.uint8),
        domain_index=np.zeros(len(ids), np.uint8),
    )


def public_trace(name):
    """A public recording kept outside the repository; skips where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("MOESIM_SHARED_DATA", beside)) / "traces" / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not here; set MOESIM_SHARED_DATA")
    return np.load(path, allow_pickle=False)
