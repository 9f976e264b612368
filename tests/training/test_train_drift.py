"""Steps while loads drift: homes, helpers, and what moving experts takes."""

import json
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from moesim.cli.app import app
from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.files import Tree
from moesim.model.spec import MoeSpec
from moesim.report.drift_page import write_drift_page
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.train_drift import Drift, drifted, move_seconds, run_drift
from moesim.scenario.train_search import common_of
from moesim.scenario.training import build_training
from moesim.scenario.training_routing import Windows
from moesim.training.copies import copies_s
from moesim.training.loads import group_load
from moesim.training.spread import Spread
from moesim.training.step import TrainStep

TREE = {
    "schema_version": 1,
    "name": "small",
    "question": "train_step",
    "model": {"name": "qwen3_30b_a3b", "num_hidden_layers": 4},
    "cluster": "h100_x16",
    "plan": {"ep": 8, "pp": 2},
    "routing": {"generator": "fitted_skew", "num_batches": 2},
    "training": {"global_batch_size": 32, "micro_batch_size": 2, "graphs": "full"},
}
HELPED = (
    "training.split.policy=llep",
    "training.split.min_tokens=1",
    "training.split.imbalance_ratio=1",
)
MOE = MoeSpec(num_experts=16, top_k=4, expert_width=64)


def resolved(*sets):
    return resolve_tree(Tree(deepcopy(TREE), source="test"), list(sets))


def built(*sets):
    return build_training(resolved(*sets))


def seconds(training):
    return float(TrainStep(training.setup).run().makespan_s[0])


def shares(seed, draws=2, layers=3, experts=16):
    drawn = rng_for(seed, "test/shares").dirichlet(np.full(experts, 0.5), size=(draws, layers))
    return np.asarray(drawn)


@given(st.integers(0, 50), st.sampled_from(["expert", "rank", "node"]))
@settings(max_examples=15, deadline=None)
def test_experts_served_at_home_in_order_are_no_spread(seed, deduplicate):
    given_shares, domain = shares(seed), np.arange(4) // 2
    home = np.repeat(np.arange(4), 4)
    served = np.broadcast_to((home[:, None] == np.arange(4)).astype(float), (2, 3, 16, 4))
    options = {"tokens_per_rank": 100.0, "domain": domain, "deduplicate": deduplicate}
    plain = group_load(given_shares, MOE, **options)
    spread = group_load(given_shares, MOE, **options, served=served)
    for name in ("scale_up_in", "scale_up_out", "scale_out_in", "scale_out_out"):
        ports = [getattr(load.ports, name) for load in (spread, plain)]
        np.testing.assert_allclose(*ports, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(spread.load.rows, plain.load.rows, atol=1.0)  # rounded sums
    assert not Spread(served, np.broadcast_to(home, (3, 16))).sent.any()


def test_an_expert_cut_in_two_sends_its_weights_once_and_halves_its_rows():
    served = np.zeros((1, 1, 16, 4))
    served[0, 0, np.arange(16), np.arange(16) // 4] = 1.0
    served[0, 0, 0] = [0.5, 0.0, 0.5, 0.0]
    even = np.full((1, 1, 16), 1 / 16)
    load = group_load(
        even, MOE, tokens_per_rank=160.0, domain=np.zeros(4, int), deduplicate="expert", served=served
    )
    np.testing.assert_array_equal(load.load.rows[0, 0], [560, 640, 720, 640])
    np.testing.assert_array_equal(load.load.touched[0, 0], [4, 4, 5, 4])
    spread = Spread(served, np.repeat(np.arange(4), 4)[None])
    assert spread.sent.sum() == spread.sent[0, 0, 0, 2] == 1
    ports = spread.sent_ports(np.array([0, 0, 1, 1]))
    np.testing.assert_array_equal(ports.scale_out_out[0, 0], [1, 0, 0, 0])
    np.testing.assert_array_equal(ports.scale_out_in[0, 0], [0, 0, 1, 0])


def test_helpers_even_out_rows_and_pay_in_weights_and_gradients():
    alone, helped = built(), built(*HELPED)
    moe = alone.common.model.layers[0].moe
    before, after = (training.setup.work.load(moe) for training in (alone, helped))
    assert after.overload.max() < 1.05 < before.overload.min()
    np.testing.assert_allclose(after.load.rows.sum(-1), before.load.rows.sum(-1))
    names = {share.name for share in TrainStep(helped.setup).seconds_by_operation(0)}
    assert {"expert weights to helpers", "expert gradients from helpers"} <= names
    assert float(helped.ledger.need_bytes.max()) < float(alone.ledger.need_bytes.max())


def test_helpers_are_worth_it_where_tokens_are_many():
    """Weights cost the same for any number of tokens."""
    gains = []
    for size in (1, 16):
        sets = [
            f"training.micro_batch_size={size}",
            "training.global_batch_size=128",
            "training.recompute=[full]",
        ]
        helped = seconds(built(*sets, *HELPED))
        gains.append(seconds(built(*sets)) / helped)
    assert gains[0] < gains[1]


def test_placement_finds_homes_that_balance():
    plain, placed = built(), built("placement.method=greedy")
    moe = plain.common.model.layers[0].moe
    over = [float(t.setup.work.load(moe).overload.mean()) for t in (plain, placed)]
    assert over[1] < over[0]
    assert seconds(placed) < seconds(plain)
    assert not placed.setup.work.spread.sent.any()


def test_drift_moves_hot_experts_and_keeps_their_skew():
    counts = (shares(1, draws=6, layers=4, experts=64) * 1000).astype(np.int64) + 1
    still = drifted(Windows(counts), Drift(5, 0.0), 0)
    np.testing.assert_allclose(still[-1].counts, counts)
    moving = drifted(Windows(counts), Drift(30, 0.3), 0)
    first, last = (step.counts.sum(0) for step in (moving[0], moving[-1]))
    spreads = [np.log(loads).std() for loads in (first, last)]
    assert spreads[1] == pytest.approx(spreads[0], rel=0.35)
    assert np.corrcoef(np.log(first).ravel(), np.log(last).ravel())[0, 1] < 0.5
    again = drifted(Windows(counts), Drift(30, 0.3), 0)
    np.testing.assert_array_equal(again[-1].counts, moving[-1].counts)


def test_moving_takes_time_in_proportion_and_nothing_where_nothing_moves():
    setup = built().setup
    home = np.broadcast_to(np.repeat(np.arange(8), 16), (4, 128)).copy()
    assert move_seconds(setup, home, home) == 0
    one, many = home.copy(), home.copy()
    one[0, 0] = 7
    many[:, :16] = 7
    assert 0 < move_seconds(setup, home, one) < move_seconds(setup, home, many)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drift")
    (folder / "small.json").write_text(json.dumps(TREE))
    call = ["train", "drift", str(folder / "small.json"), "--steps", "4", "--every", "2", "--drift", "0.3"]
    call += ["--set", "training.split.min_tokens=1", "--out", str(folder / "out")]
    result = CliRunner().invoke(app, call)
    assert result.exit_code == 0, result.output
    return json.loads((folder / "out" / "drift.json").read_text()), folder / "out", result.stdout


def test_command_tells_every_answer_step_by_step(run):
    document, _, shown = run
    rows = {row["answer"]: row for row in document["rows"]}
    assert list(rows) == ["none", "greedy", "llep", "every expert alike"]
    for row in rows.values():
        assert row["mean_step_s"] == pytest.approx(np.mean([step["step_s"] for step in row["steps"]]))
        assert row["mean_step_s"] >= rows["every expert alike"]["mean_step_s"]
    moves = [step["moved_experts"] for step in rows["greedy"]["steps"]]
    assert moves[:2] == [0, 0]
    assert moves[2] > 0 == moves[3]
    assert rows["none"]["moved_experts"] == rows["llep"]["moved_experts"] == 0
    assert rows["llep"]["mean_imbalance_ratio"] < rows["none"]["mean_imbalance_ratio"]
    assert "every expert alike" in shown


def test_page_is_whole_and_repeatable(run, tmp_path):
    document, folder, _ = run
    rows = [["<none>", "1 s", "1 s", "1x", "0", "-"]]
    one, two = (write_drift_page(document, tmp_path / name, rows).read_bytes() for name in "ab")
    assert one == two
    assert b"&lt;none&gt;" in one
    assert (folder / "drift.html").read_text().count("<svg") == 1


@pytest.mark.parametrize(
    ("sets", "drift", "field"),
    [
        (["routing={generator: balanced}"], Drift(2), "routing"),
        (["plan.ep=1"], Drift(2), "plan.ep"),
        ([], Drift(0), "--steps"),
        ([], Drift(2, 1.5), "--drift"),
        ([], Drift(2, 0.1, 0), "--every"),
    ],
)
def test_what_cannot_drift_is_refused(sets, drift, field):
    asked = resolved(*sets)
    with pytest.raises(InputError, match=f"{field}.*accepted"):
        run_drift(asked, common_of(asked), drift, ["none"])


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (["placement.redundant_experts=8"], "placement.redundant_experts"),
        (["placement.method=affinity"], "loads alone"),
        (["training.split.policy=least_loaded"], "training.split.policy"),
        (["training.split.policy=llep", "training.split.budget=2"], "training.split.budget"),
    ],
)
def test_homes_and_helpers_that_training_does_not_have_are_refused(sets, words):
    with pytest.raises(InputError, match=words):
        built(*sets)


HECATE = ("training.split.policy=hecate", "training.split.slots=4")


def test_materialised_experts_even_loads_and_their_way_is_hidden_or_shown():
    alone, helped = built(), built(*HECATE)
    assert seconds(helped) < seconds(alone)
    spread = helped.setup.work.spread
    assert np.allclose(spread.served.sum(axis=-1), 1.0)
    foreign = (spread.held & (spread.home[..., None] != np.arange(8))).sum(axis=-2)
    assert foreign.max() == 4
    again = built(*HECATE, "training.split.rematerialise=true")
    assert seconds(again) == seconds(helped)  # inside a node all of it hides under attention
    one, two = (t.ledger.parts["gathered weights"].max() for t in (helped, again))
    expert = 3 * 2048 * 768 * 2
    assert one == 4 * 4 * expert  # four layers of a stage
    assert two == 4 * 2 * expert  # the two at work
    # nobody counts them a second time: buffers follow the evener loads
    before, after = alone.ledger.parts, helped.ledger.parts
    assert all(after[name].max() <= before[name].max() for name in before)


def test_an_expert_enters_a_domain_once():
    home = np.array([[0, 1, 2, 3]])
    held = home[..., None] == np.arange(4)
    held[0, 0] = True  # everywhere
    held[0, 1, 0] = True  # a neighbour's
    spread = Spread(held / held.sum(axis=-1, keepdims=True), home, held[None])
    assert spread.entering(np.array([0, 0, 1, 1])).tolist() == [[1.0]]
    assert spread.entering(np.arange(4)).tolist() == [[1.0]]
    assert spread.sent[0, 0].tolist() == [[0, 1, 1, 1], [1, 0, 0, 0], [0] * 4, [0] * 4]


def test_copies_that_stay_are_sent_once_a_step():
    helped = built(*HECATE).setup.work.spread
    assert helped.passes_share == 1 / 2  # 32 sequences, two each on eight replicas
    spread = replace(helped, passes_share=1.0)
    work = replace(built(*HECATE).setup.work, spread=spread)
    ranks, fabric = work.plan.ep_ranks(), work.fabric
    whole, shared = (copies_s(s, 1e6, 2e6, ranks, fabric) for s in (spread, helped))
    for one, part in zip(whole, shared, strict=True):
        assert np.all(one.seconds > 0)
        assert part.seconds == pytest.approx(one.seconds / 2)
    there, back = copies_s(replace(helped, twice=True), 1e6, 2e6, ranks, fabric)
    assert there.seconds == pytest.approx(whole[0].seconds)  # for every microbatch
    assert back.seconds == pytest.approx(whole[0].seconds + whole[1].seconds)
