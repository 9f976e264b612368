"""Laws of single papers' mechanisms: Tutel's switch, LSH-MoE's rate, Hecate's sparse sharding."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.placement.splits.hecate import materialise
from moesim.training.papers import hecate, lsh
from moesim.training.papers.tutel import best_degree, degrees, volumes

NODE = np.repeat(np.arange(4), 2)
SIZES = {"ranks": 64, "experts": 16, "row_bytes": 4096.0, "expert_bytes": 2.0**25}


def test_a_higher_degree_trades_weights_for_tokens() -> None:
    found = [volumes(degree, rows=4096.0, **SIZES) for degree in (1, 2, 4)]
    assert degrees(64, 16) == [0, 1, 2, 4]
    assert [one.token_bytes for one in found] == sorted(one.token_bytes for one in found)
    assert [one.weight_bytes for one in found] == sorted((one.weight_bytes for one in found), reverse=True)
    assert found[-1].weight_bytes == 0
    assert volumes(0, rows=4096.0, **SIZES).token_bytes == 0


def test_the_switch_moves_from_tokens_to_weights_as_rows_grow() -> None:
    chosen = []
    for rows in (16.0, 4096.0, 2.0**22):
        choices = degrees(64, 16)
        chosen.append(best_degree(choices, [volumes(d, rows=rows, **SIZES).total_bytes for d in choices]))
    assert chosen[0] == 4
    assert chosen[-1] == 0


def test_compression_never_exceeds_the_exchanges() -> None:
    assert lsh.speedup(0.4, 1.0) == 1.0
    assert lsh.speedup(0.4, 0.0) == pytest.approx(1 / 0.6)
    assert lsh.speedup(0.4, 0.2, hashing_share=0.5) < 1
    assert lsh.hashing_flops(1024, 6) == 2 * 6 * 1024**2


def test_routing_keeps_every_row() -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 10, (8, 16))
    owned = hecate.reshard(rows.sum(axis=0), 8)
    assert owned.sum(axis=0).tolist() == [1] * 16
    assert owned.sum(axis=1).tolist() == [2] * 8
    for hidden in (0, 3, 100):
        held = materialise(owned, rows.sum(axis=0), hidden, 4, NODE)
        assert np.all(held >= owned)
        assert (held.sum(axis=1) - owned.sum(axis=1)).max() <= max(4, hidden if hidden <= 4 else 4)
        way = hecate.route(held, rows, NODE)
        assert way.computed.sum() == pytest.approx(rows.sum())
        assert (way.crossing + way.local).sum() <= rows.sum()


def test_everything_everywhere_moves_nothing() -> None:
    rows = np.ones((8, 16))
    way = hecate.route(np.ones((8, 16), bool), rows, NODE)
    assert way.crossing.sum() == way.local.sum() == 0
    assert way.computed == pytest.approx(16.0)


def test_loads_drift_and_stay_shares() -> None:
    rng = np.random.default_rng(1)
    loads = hecate.drifting_loads(200, 32, 1.0, 0.99, rng)
    assert loads.sum(axis=1) == pytest.approx(1.0)
    near = np.corrcoef(loads[0], loads[1])[0, 1]
    far = np.corrcoef(loads[0], loads[-1])[0, 1]
    assert near > 0.9 > far
    assert hecate.overlap_degree(1e-3, 50e9, 20e6) == 2
