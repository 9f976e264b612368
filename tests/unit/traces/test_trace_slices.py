"""Parts and unions of traces; the simple generators."""

import json

import numpy as np
import pytest
from trace_samples import small_trace, trace_of
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.traces import read_trace, write_trace
from moesim.traces.generators import generators
from moesim.traces.generators.aic_power_law import hottest_first, power_law_counts
from moesim.traces.slices import by_domain, by_layer, merge, remap, sample
from moesim.traces.statistics import gini_fraction, variation_ratio
from moesim.traces.store import verify_trace


def test_merge_keeps_rows_and_names_domains():
    first, second = small_trace(seed=1), small_trace(seed=2, tokens=20, requests=2)
    both = merge([first, second])
    verify_trace(both)
    assert both.num_requests == first.num_requests + second.num_requests
    assert np.array_equal(both.expert_ids[60:], second.expert_ids)
    assert both.info.domains == ("prose", "code")
    assert both.step_index[60:].min() > both.step_index[:60].max()
    named = merge([first, second], domains=("a", "b"))
    assert [named.info.domains[i] for i in (named.domain_index[0], named.domain_index[60])] == ["a", "b"]
    assert {name: part.num_tokens for name, part in by_domain(named).items()} == {"a": 60, "b": 20}


def test_merge_refuses_other_shapes():
    for other in (small_trace(layers=2), small_trace(experts=9), small_trace(top_k=3)):
        with pytest.raises(InputError, match="equal shapes"):
            merge([small_trace(), other])
    with pytest.raises(InputError, match="at least one"):
        merge([])


def test_domains_partition_a_trace():
    trace = small_trace()
    parts = by_domain(trace)
    assert sum(part.num_tokens for part in parts.values()) == trace.num_tokens
    assert sum(part.counts() for part in parts.values()).tolist() == trace.counts().tolist()


def test_sample_takes_whole_requests():
    trace = small_trace()
    part = sample(trace, 3, np.random.default_rng(0))
    verify_trace(part)
    assert part.num_tokens == 30
    assert len(np.unique(part.request_index)) == 3
    with pytest.raises(InputError, match="1 to 6"):
        sample(trace, 7, np.random.default_rng(0))


def test_layers_by_number():
    trace = small_trace()
    part = by_layer(trace, (3, 1))
    assert part.info.layer_indices == (1, 3)
    assert np.array_equal(part.expert_ids, trace.expert_ids[:, [0, 2]])
    with pytest.raises(InputError, match=r"some of \[1, 2, 3\]"):
        by_layer(trace, (0,))


def test_remap_and_back():
    trace = small_trace(empty=0.2)
    rng = np.random.default_rng(0)
    there = np.stack([rng.permutation(8) for _ in range(3)])
    back = np.argsort(there, axis=1)
    again = remap(remap(trace, there), back)
    assert np.array_equal(again.expert_ids, trace.expert_ids)
    replicas = np.tile(np.arange(8) % 4, (1, 1))
    merged = remap(trace_of([[[0, 5]], [[4, 1]]], 8), replicas)
    assert merged.expert_ids.tolist() == [[[0, 1]], [[0, 1]]]
    assert merged.num_experts == 4
    with pytest.raises(InputError, match="one expert twice"):
        remap(trace_of([[[0, 4]]], 8), replicas)
    with pytest.raises(InputError, match="whole numbers >= 0"):
        remap(trace, there[:2])


def test_commands(tmp_path):
    one = write_trace(tmp_path / "one.safetensors", small_trace())

    def run(*words):
        result = CliRunner().invoke(app, ["trace", *map(str, words)])
        assert result.exit_code == 0, result.output
        return result

    both = tmp_path / "both.safetensors"
    run("merge", one, one, "--domain", "x", "--domain", "y", "--out", both)
    run("by-domain", both, "--out", tmp_path / "parts")
    assert read_trace(tmp_path / "parts" / "y.safetensors").num_tokens == 60
    out = tmp_path / "out.safetensors"
    run("sample", both, "--requests", 2, "--out", out)
    run("window", both, "--start", 5, "--stop", 9, "--out", out, "--force")
    assert read_trace(out).num_tokens == 4
    run("by-layer", both, "--layers", "2-3", "--out", out, "--force")
    assert read_trace(out).info.layer_indices == (2, 3)
    mapping = tmp_path / "map.json"
    mapping.write_text(json.dumps({"physical_to_logical_map": [list(range(8))] * 3}))
    run("remap", both, "--map", mapping, "--out", out, "--force")
    assert np.array_equal(read_trace(out).expert_ids, read_trace(both).expert_ids)
    shown = json.loads(run("compare", one, both, "--json").stdout)
    assert {row["statistic"] for row in shown["rows"]} >= {"repeat_fraction", "batch_imbalance_ratio"}
    fitted = tmp_path / "fitted.json"
    run("fit", both, "--out", fitted)
    shape = ("--layers", 3, "--experts", 8, "--top-k", 2)
    run("generate", "matched", "--param", f"like={fitted}", *shape, "--tokens", 50, "--out", out, "--force")


def generate(name, tokens=1000, layers=3, experts=16, top_k=4, **params):
    trace = generators.build(name, params).generate(tokens, layers, experts, top_k, np.random.default_rng(0))
    verify_trace(trace)
    return trace


def test_balanced_is_balanced():
    for tokens, experts, top_k in ((1000, 16, 4), (7, 5, 5), (13, 9, 2), (3, 64, 6)):
        counts = generate("balanced", tokens=tokens, experts=experts, top_k=top_k).counts()
        assert counts.max() - counts.min() <= 1


def test_dirichlet_concentration():
    flat, skewed = (
        gini_fraction(generate("dirichlet", concentration=c).counts()).mean() for c in (50.0, 0.5)
    )
    assert flat < 0.15 < 0.3 < skewed
    wide = generate("dirichlet", layers=40, experts=64, top_k=1, tokens=4000, concentration=4.0)
    assert variation_ratio(wide.counts()).mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 1.01, 1.2, 3.0])
@pytest.mark.parametrize(("tokens", "top_k"), [(1, 3), (2, 16), (500, 4)])
def test_power_law_counts_add_up(alpha, tokens, top_k):
    counts = power_law_counts(tokens, 16, top_k, alpha, np.random.default_rng(1))
    assert counts.sum() == tokens * top_k
    assert counts.max() <= tokens
    assert counts.min() >= 0
    trace = generate("aic_power_law", tokens=tokens, top_k=top_k, alpha=alpha)
    assert trace.counts().sum() == 3 * tokens * top_k


def test_power_law_skew_is_that_of_its_definition():
    trace = generate("aic_power_law", tokens=4000, layers=8, experts=64, top_k=6, alpha=1.01)
    assert gini_fraction(trace.counts()).mean() == pytest.approx(0.77, abs=0.06)


def test_hottest_rank_comes_first():
    counts = np.array([1, 2, 9, 9, 3, 3])
    assert counts[hottest_first(counts, 3)].tolist() == [9, 9, 1, 2, 3, 3]
    assert hottest_first(counts, 0).tolist() == list(range(6))
