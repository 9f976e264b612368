"""The bundled trace and the checkpoint it was captured from."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from moesim.files import find
from moesim.traces import check_against, fit_skew, read_trace, summarize

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "traces" / "tiny_olmoe"
DOMAINS = ("prose", "python", "c", "markup")


@pytest.fixture(scope="module")
def trace():
    return read_trace(find("tiny_olmoe", "traces", suffixes=(".safetensors",)))


@pytest.fixture(scope="module")
def config():
    return json.loads((FOLDER / "checkpoint" / "config.json").read_text())


def test_trace_is_of_the_checkpoint(trace, config):
    check_against(
        trace,
        model="tiny_olmoe",
        num_experts=config["num_experts"],
        num_layers=config["num_hidden_layers"],
        top_k=config["num_experts_per_tok"],
    )
    assert trace.info.evidence == "measured"


def test_trace_has_every_domain_in_both_phases(trace):
    assert trace.info.domains == DOMAINS
    for domain in DOMAINS:
        for phase, least in (("prefill", 8000), ("decode", 2000)):
            assert trace.select(domain=domain).select(phase=phase).num_tokens >= least


def test_no_slot_is_empty_and_weights_sum_to_one(trace):
    assert trace.counts().sum() == trace.num_tokens * trace.num_layers * trace.top_k
    assert np.allclose(trace.gate_weights.astype(np.float32).sum(axis=-1), 1.0, atol=0.01)


def test_routing_is_neither_uniform_nor_collapsed(trace):
    stats = summarize(trace, np.random.default_rng(0), batch_sizes=(16,), lru_tokens=4000)
    assert (stats.gini_fraction > 0.05).all()
    assert (stats.gini_fraction < 0.7).all()
    assert stats.dead_experts.sum() <= 8
    assert (stats.repeat_fraction > stats.independent_repeat_fraction).all()
    assert stats.mutual_information_nats.min() > 0.05


def test_domains_route_differently(trace):
    loads = [trace.select(domain=d).counts().ravel().astype(float) for d in DOMAINS]
    unit = np.stack([load / np.linalg.norm(load) for load in loads])
    cosine = unit @ unit.T
    assert cosine[~np.eye(4, dtype=bool)].max() < 0.97


def test_split_parts_see_every_domain(trace):
    for part in trace.split(0.5):
        assert set(part.domain_index.tolist()) == {0, 1, 2, 3}


def test_fit_to_it_works(trace):
    fitted = fit_skew(trace, np.random.default_rng(0))
    assert fitted.context_strength > 0.2
    assert fitted.load_curve[0] > 1.2


def test_loss_left_the_unigram_level():
    record = json.loads((FOLDER / "training.json").read_text())
    for domain in DOMAINS:
        assert record["heldout"][domain] < record["heldout_entropy"][domain] - 1.0
    rows = list(csv.DictReader((FOLDER / "loss.csv").read_text().splitlines()))
    assert float(rows[-1]["train"]) < float(rows[1]["train"])
    assert int(float(rows[-1]["step"])) == record["steps"]


def test_files_are_small_and_cannot_hold_code():
    files = [p for p in (ROOT / "traces").rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert {p.suffix for p in files} <= {".safetensors", ".json", ".csv", ".png", ".py", ".md", ".keep", ""}
    assert (FOLDER / "checkpoint" / "model.safetensors").stat().st_size < 12_000_000
    assert (ROOT / "traces" / "tiny_olmoe.safetensors").stat().st_size < 6_000_000
