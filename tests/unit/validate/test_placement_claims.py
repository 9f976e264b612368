"""Claims about placement: the published numbers are whole, and the simulated ones obey their limits."""

import numpy as np
import pytest

from moesim.validate.claims import published
from moesim.validate.placement import _Layer

DATA = published("placement").data


def test_published_table_is_whole():
    llep = DATA["llep"]
    assert [model["name"] for model in llep["models"]] == ["gpt-oss-120b", "DeepSeek-V3", "Kimi-K2"]
    for model in llep["models"]:
        assert sorted(model["speedup"]) == ["1", "16", "4"] or sorted(model["speedup"]) == [1, 4, 16]
        assert all(len(row) == len(llep["hot_fractions"]) for row in model["speedup"].values())
    assert all(DATA[name]["source"] for name in ("llep", "exflow", "moetuner"))


@pytest.mark.parametrize("model", DATA["llep"]["models"], ids=lambda model: model["name"])
def test_spilling_gains_no_more_than_the_busiest_rank_has_too_much(model):
    layer = _Layer(DATA["llep"], model)
    assert layer.speedup(layer.tokens(0, 0.0)) == pytest.approx(1.0)
    for hot, fraction in ((1, 0.5), (16, 0.95)):
        tokens = layer.tokens(hot, fraction)
        total = model["tokens_per_gpu"] * 8 * model["top_k"]
        assert tokens.sum() == pytest.approx(total, rel=0.002)
        np.testing.assert_allclose(tokens[:hot].sum() / total, fraction, rtol=0.002)
        assert 1 < layer.speedup(tokens) <= layer.busiest(tokens)
