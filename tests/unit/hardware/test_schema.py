import numpy as np
import pytest
from pydantic import ValidationError

from moesim.errors import InputError
from moesim.files import Tree
from moesim.hardware import Device, load_cluster, load_device, load_node


def device(**changes):
    fields = {
        "kind": "gpu",
        "peak_flops_per_s": {"bf16": 1e15},
        "memory": {"hbm": {"capacity_bytes": 8e10, "bandwidth_bytes_per_s": 3e12}},
        "num_units": 100,
        "launch_s": 2e-6,
        "idle_w": 50,
        "busy_w": 500,
    }
    return Device(**(fields | changes))


def test_first_memory_is_the_main_one():
    tiers = {
        name: {"capacity_bytes": 1e9, "bandwidth_bytes_per_s": rate}
        for name, rate in (("a", 2.0), ("b", 3.0))
    }
    assert device(memory=tiers).main_memory.bandwidth_bytes_per_s == 2.0


@pytest.mark.parametrize(
    ("supported", "dtype", "runs_in"),
    [
        (("bf16", "fp8"), "fp8", "fp8"),
        (("bf16", "fp8"), "nvfp4", "fp8"),
        (("bf16", "int8"), "fp8", "bf16"),
        (("bf16", "int8"), "int4", "int8"),
        (("fp16", "fp32"), "bf16", "fp16"),
        (("fp32",), "fp8", "fp32"),
        (("mxfp4", "fp8"), "nvfp4", "mxfp4"),
    ],
)
def test_unsupported_types_compute_in_the_next_wider(supported, dtype, runs_in):
    peaks = {name: 1e12 * (1 + i) for i, name in enumerate(supported)}
    described = device(peak_flops_per_s=peaks)
    assert described.compute_dtype(dtype) == runs_in
    assert described.dense_peak_flops_per_s(dtype) == peaks[runs_in]


def test_never_narrower():
    with pytest.raises(InputError, match="bf16"):
        device().compute_dtype("fp32")
    with pytest.raises(InputError, match="fp8"):
        device().compute_dtype("fp9")


@pytest.mark.parametrize(
    "changes",
    [
        {"busy_w": 40},
        {"peak_flops_per_s": {}},
        {"peak_flops_per_s": {"bf17": 1e12}},
        {"peak_flops_per_s": {"bf16": float("inf")}},
        {"peak_flops_per_s": {"bf16": "1e12"}},
        {"num_units": 0},
        {"num_units": True},
        {"launch_s": -1e-6},
        {"memory": {}},
        {"host_memory_of": "h100_sxm"},
        {"sources": {"num_units": "somewhere"}},
        {"sources": {"num_units": "datasheet: "}},
        {"colour": "green"},
    ],
)
def test_wrong_devices_are_refused(changes):
    with pytest.raises(ValidationError):
        device(**changes)


def test_descriptions_do_not_change():
    with pytest.raises(ValidationError):
        device().num_units = 5


def test_most_specific_source_wins():
    described = device(sources={"memory": "assumed: a", "memory.hbm.capacity_bytes": "measured: b"})
    assert described.source_of("memory.hbm.capacity_bytes") == "measured: b"
    assert described.source_of("memory.hbm.latency_s") == "assumed: a"
    assert described.source_of("launch_s") == ""


def test_ranks_are_counted_node_by_node():
    cluster = load_cluster("h200_x32")
    ranks = np.arange(32)
    assert cluster.num_devices == 32
    assert cluster.node_of(ranks).tolist() == (ranks // 8).tolist()
    assert cluster.domain_of(ranks).tolist() == (ranks // 8).tolist()
    assert cluster.rail_of(ranks).tolist() == (ranks % 8).tolist()
    assert cluster.nic_bandwidth_per_device_bytes_per_s == 50e9


def test_shared_ports_split_their_rate():
    node = load_node("l40s_x8")
    cluster = load_cluster("l40s_x32_oversubscribed")
    assert cluster.nic_bandwidth_per_device_bytes_per_s == node.nic.bandwidth_bytes_per_s * 2 / 8
    assert cluster.rail_of(np.arange(8)).tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"num_nodes": 4, "scale_out": {"kind": "none"}}, "needs a network"),
        ({"scale_out": {"kind": "fat_tree"}}, "nodes_per_leaf"),
        ({"node": {"num_nics": 3}}, "a divisor or a multiple"),
        ({"node": {"num_nics": 0}}, "disagree"),
        ({"node": {"scale_up": None}}, "disagree"),
        ({"node": {"scale_up_kind": "none"}}, "disagree"),
        ({"node": {"pim": "duplex_logic_pim"}}, "works in the memory of"),
        ({"node": {"pim": "h100_sxm"}}, "kind pim"),
        ({"scale_up_domain_nodes": 2, "node": {"scale_up_kind": "xgmi_mesh"}}, "needs node.scale_up_kind"),
    ],
)
def test_parts_that_do_not_fit_are_told(override, message):
    with pytest.raises(InputError, match=message):
        load_cluster(Tree({"profile": "h200_x32"} | override))


def test_h100_keeps_its_published_figures():
    h100 = load_device("h100_sxm")
    assert h100.dense_peak_flops_per_s("bf16") == 989.4e12
    assert h100.dense_peak_flops_per_s("fp8") == 1978.9e12
    assert h100.dense_peak_flops_per_s("mxfp4") == 1978.9e12
