"""Every shipped machine: loads, names its sources, and has numbers that agree with one another."""

import math

import pytest

from moesim.hardware import load_cluster, load_device, load_node, profile_names, read_profile
from moesim.hardware.audit import field_origins, profile_problems
from moesim.hardware.device import SOURCE_GRADES

LOADERS = {"device": load_device, "node": load_node, "cluster": load_cluster}
KINDS = {name: read_profile(name).kind for name in profile_names()}
DEVICES = [name for name, kind in KINDS.items() if kind == "device"]

PROMISED_DEVICES = set(
    """
    a100_sxm_40 a100_sxm_80 h100_sxm h100_pcie h200_sxm h800_sxm h20 b200_sxm b300_sxm gb200 gb300 mi300x l40s
    l4 a40 rtx_a6000 rtx_3090 rtx_4090 rtx_5090 rtx_pro_6000 t4 xeon_8480c xeon_emerald_rapids epyc_9654 grace
    generic_laptop epyc_2core_vm duplex_logic_pim duplex_bank_pim samsung_hbm_pim skhynix_aim cxl_pnm zcu104
    """.split()  # noqa: SIM905 - a list of names reads better in lines
)
CLOCKED_GPUS = [
    name
    for name in DEVICES
    if load_device(name).kind == "gpu" and load_device(name).clock_hz and name != "duplex_xpu"
]


def test_promised_devices_are_shipped():
    assert set(DEVICES) >= PROMISED_DEVICES


@pytest.mark.parametrize("name", sorted(KINDS))
def test_profile_is_sound(name):
    """No problem, the name of its file, and every number with a grade and a text."""
    assert profile_problems(name) == []
    assert LOADERS[KINDS[name]](name).name == name
    numbers = [row for row in field_origins(read_profile(name).tree) if isinstance(row.value, int | float)]
    assert len(numbers) >= 7
    assert not [row.path for row in numbers if row.grade not in SOURCE_GRADES or not row.source]


@pytest.mark.parametrize("name", sorted(n for n, kind in KINDS.items() if kind == "node"))
def test_node_stands_for_its_cluster(name):
    cluster = load_cluster(name)
    assert cluster.num_nodes == 1
    assert cluster.num_devices == load_node(name).num_devices


@pytest.mark.parametrize("name", CLOCKED_GPUS)
def test_dense_peak_is_what_the_units_can_do(name):
    """16-bit operations per unit and cycle of a GPU are a power of two: a sparse or slipped figure is not."""
    device = load_device(name)
    peak = device.dense_peak_flops_per_s("fp16")
    per_cycle = peak / (device.num_units * device.clock_hz)
    nearest = 2 ** round(math.log2(per_cycle))
    assert 512 <= nearest <= 8192
    assert per_cycle == pytest.approx(nearest, rel=0.06)


@pytest.mark.parametrize(
    ("name", "per_cycle"),
    [
        ("t4", 1024),
        ("a100_sxm_80", 2048),
        ("h100_sxm", 4096),
        ("h200_sxm", 4096),
        ("b200_sxm", 8192),
        ("mi300x", 2048),
    ],
)
def test_generations_have_their_tensor_width(name, per_cycle):
    device = load_device(name)
    measured = device.dense_peak_flops_per_s("fp16") / (device.num_units * device.clock_hz)
    assert measured == pytest.approx(per_cycle, rel=0.06)


def test_duplex_is_balanced_as_its_paper_says():
    """Logic-PIM: eight operations a byte and four times the bandwidth; Bank-PIM: one and sixteen."""
    external = load_device("duplex_xpu").main_memory.bandwidth_bytes_per_s
    for name, intensity, ratio in (("duplex_logic_pim", 8, 4), ("duplex_bank_pim", 1, 16)):
        pim = load_device(name)
        rate = pim.main_memory.bandwidth_bytes_per_s
        assert rate / external == pytest.approx(ratio)
        assert pim.dense_peak_flops_per_s("fp16") / rate == pytest.approx(intensity, rel=0.01)
        assert load_node(name.replace("_pim", "_x4")).pim == pim


def test_rack_has_one_scale_up_domain():
    rack = load_cluster("gb200_nvl72")
    assert rack.num_devices == rack.devices_per_domain == 72
    assert rack.num_domains == 1
    assert load_cluster("gb200_nvl72_x2").num_domains == 2
