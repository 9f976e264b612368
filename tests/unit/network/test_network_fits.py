"""From measured rows to a file of network fits and back, on tables made by a known law."""

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.files.document import read_document
from moesim.hardware import load_node
from moesim.kernels.measured import MeasuredTable
from moesim.network.curves import collective_s
from moesim.network.fit.device import fit_measured
from moesim.network.fit.exchanges import fit_exchanges
from moesim.network.fit.tables import Table
from moesim.network.fit_file import NetworkFits, network_fits, write_network_fits
from moesim.network.forms import FORMS, Moved, hit_probability

SIZES = 2.0 ** np.arange(9, 28)


def gloo(ranks=(2, 4)):
    """Rows of a start and a rate: 100 us, 2 GB/s a pair."""
    ranks, sizes = (a.ravel() for a in np.meshgrid(ranks, SIZES))
    seconds = 1e-4 * np.log2(ranks) + sizes / 2e9
    columns = {"num_ranks": ranks.astype(float), "payload_bytes": sizes}
    return MeasuredTable("all_reduce", "epyc_2core_vm", "gloo", "fp32", columns, seconds)


def test_harness_rows_become_curves_that_hold_on_sizes_left_out(tmp_path):
    fits = fit_measured([gloo()], load_node("epyc_2core_vm_x1"))
    (curve,) = fits.collectives
    assert curve.sizes_left_out.median_ape < 0.03
    assert curve.sizes_left_out.coverage >= 0.75
    between, _ = collective_s(curve, 1.5 * 2.0**20, 2, "fp32")
    assert float(between) == pytest.approx(1e-4 + 1.5 * 2.0**20 / 2e9, rel=0.06)
    path = write_network_fits(tmp_path / "mine.yaml", fits)
    again = read_document(NetworkFits, path)
    assert write_network_fits(tmp_path / "again.yaml", again).read_bytes() == path.read_bytes()


def test_nothing_measured_gives_no_fits():
    assert fit_measured([], load_node("epyc_2core_vm_x1")) is None


def test_a_broken_file_is_told_with_its_line(tmp_path):
    text = '{"schema_version": 1, "device": "x", "scale_up_bytes_per_s": -1,\n"sources": {}}'
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(InputError, match="scale_up_bytes_per_s"):
        read_document(NetworkFits, tmp_path / "x.yaml")


def test_devices_of_a_generation_share_fits_with_wider_bands():
    own, shared = network_fits("h100_sxm"), network_fits("h800_sxm")
    assert shared.exchanges == own.exchanges
    assert shared.sigma_ratio > own.sigma_ratio == 1
    assert network_fits("mi300x") is None


def test_a_form_fitted_to_its_own_times_predicts_ranks_it_did_not_see():
    """Parameters need not be recovered (some trade off), predictions must be."""
    rng = np.random.default_rng(1)
    ranks = rng.choice([8.0, 16.0, 32.0, 64.0], 200)
    tokens = np.exp(rng.uniform(0, 9, 200))
    truth = {name: start for name, (start, _, _) in FORMS["nvlink"].parameters.items()} | {"rank_s": 4e-6}
    columns = {
        "tokens": tokens,
        "row_bytes": np.full(200, 7168.0),
        "scale_up_bytes": tokens * 7168.0 * np.minimum(ranks, 8),
        "nic_bytes": np.zeros(200),
        "num_ranks": ranks,
        "num_domains": np.ones(200),
        "num_experts": np.full(200, 256.0),
        "sms": np.zeros(200),
    }
    moved = Moved(**columns, scale_up_bytes_per_s=9e11, nic_bytes_per_s=5e10)
    seconds = FORMS["nvlink"].seconds(moved, truth)
    table = Table("nvlink_one_sided", "made", "dispatch", "nobody", columns, seconds, "made here")
    (fit,) = fit_exchanges([table], 9e11, 5e10)
    assert fit.held_out.median_ape < 0.01
    assert set(fit.ranks_left_out) == {"8", "16", "32", "64"}
    assert max(errors.median_ape for errors in fit.ranks_left_out.values()) < 0.05


def test_hit_probability_equals_drawing():
    rng = np.random.default_rng(0)
    drawn = np.argsort(rng.random((20_000, 64)), axis=1)[:, :6] // 16
    hit = np.mean((drawn == 0).any(axis=1))
    assert float(hit_probability(4.0, 64.0, 6)) == pytest.approx(hit, abs=0.01)
