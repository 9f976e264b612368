"""Papers on training beside ours: laws of the helpers, and that every paper gives claims."""

from __future__ import annotations

import numpy as np
import pytest

from moesim.evidence import Estimate
from moesim.hardware.load import load_cluster
from moesim.training.overlaps import Triple, triple_overlaps
from moesim.validate.claims import published
from moesim.validate.training_sets.comet import _Setting
from moesim.validate.training_sets.fsmoe import fsmoe_claims
from moesim.validate.training_sets.hosted import Hosted
from moesim.validate.training_sets.layer import EvenLayer, Machine
from moesim.validate.training_sets.papers import flashmoe_claims, lsh_claims
from moesim.validate.training_sets.tutel import _Features

DATA = published("training").data


def test_fsmoe_reaches_its_means_and_shows_its_misses() -> None:
    claims = {claim.name: claim for claim in fsmoe_claims(DATA)}
    assert len(claims) == 43
    means = [claim for name, claim in claims.items() if "1,458 layers" in name]
    assert sum(claim.within for claim in means) >= 4
    phases = [claim for claim in claims.values() if claim.unit == "ms"]
    assert sum(claim.within for claim in phases) >= 23
    missed = [claim for claim in claims.values() if not claim.within]
    assert missed
    assert all(claim.note for claim in missed)


def test_lsh_claims_note_why_they_differ() -> None:
    assert all(claim.note for claim in lsh_claims(DATA))


def test_an_even_layer_prices_parts_of_its_rows() -> None:
    machine = Machine.of(load_cluster("h100_x8"), 8)
    layer = EvenLayer(machine, 4096, 64, 6, 2048, 1408, gated=True)
    for curve in (layer.experts_s, lambda part: layer.exchange_s("dispatch", part)):
        times = [float(np.max(curve(part).seconds)) for part in (0.25, 0.5, 1.0)]
        assert times == sorted(times)
        assert times[0] > 0
    alone = EvenLayer(Machine.of(load_cluster("h100_x8"), 1), 4096, 64, 6, 2048, 1408, gated=True)
    assert float(np.max(alone.exchange_s("combine").seconds)) == 0


def test_every_feature_of_tutel_helps() -> None:
    given = DATA["tutel"]
    features = _Features(Machine.of(load_cluster("a100_x64"), 16), given)
    assert features.speedup("all") > features.speedup("kernels") > 1
    assert features.speedup("all") == pytest.approx(features.speedup("pipelining"))
    assert features.more("pipelining") >= 1


def _alone(dispatch_s: float, experts_s: float, combine_s: float) -> Triple:
    each = (Estimate(seconds, "moe", "assumed", 0.0) for seconds in (dispatch_s, experts_s, combine_s))
    return Triple(*((lambda _, one=one: one) for one in each), group=np.zeros(2, np.int64))


def test_without_launches_a_hosted_layer_is_its_device_and_with_long_ones_its_host() -> None:
    plain, triple = triple_overlaps.build("none"), _alone(1e-3, 3e-3, 2e-3)
    device = Hosted(0.0, 3, 3, 1, sorted_s=0.5e-3, summed_s=0.25e-3)
    assert device.layer_s(plain, triple, 4e-3) == pytest.approx(6.75e-3)
    host = Hosted(0.1, 3, 3, 1)
    # seven operations of attention and seven of the layer, and a wait for the short exchanges
    assert host.layer_s(plain, triple, 4e-3) == pytest.approx(14 * 0.1 - 4e-3, rel=0.02)
    # short ones lie beside attention and the dispatch
    assert Hosted(1e-4, 3, 3, 1).layer_s(plain, triple, 4e-3) == pytest.approx(6e-3)


def test_flashmoe_cells_are_within_their_bound_and_its_baselines_say_why_not() -> None:
    claims = flashmoe_claims(DATA)
    cells = [claim for claim in claims if "experts, " in claim.name]
    assert len(cells) == 9
    assert all(claim.within for claim in cells)
    assert all(claim.note for claim in claims if not claim.within)


def test_comet_moves_each_token_once_to_a_device_that_holds_any_of_its_experts() -> None:
    model = {"experts": 8, "top_k": 2}
    for tp in (1, 2, 4, 8):
        setting = _Setting(model, 1024, tp, 8)
        assert setting.crossing_tokens <= setting.crossing_rows * (1 + 1e-9)
    # one device an expert: every row is a token; all experts everywhere: every token once
    assert _Setting(model, 1024, 1, 8).crossing_tokens == pytest.approx(2048 * 7 / 8)
    assert _Setting(model, 1024, 8, 8).crossing_tokens == pytest.approx(1024 * 7 / 8)
