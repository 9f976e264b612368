"""Experts on the host: what their memory gives, what their cores unpack, what the hand-over costs."""

from dataclasses import replace

import numpy as np
import pytest

from moesim.errors import InputError
from moesim.hardware.load import load_node
from moesim.model.ops import GroupedExperts
from moesim.offload.host import HostWork, cpu_unit
from moesim.offload.rates import hybrid_rates

INT4 = GroupedExperts("experts", 2048, 768, True, "int4", "bf16", 128, 8)
ONE = np.array([1])


@pytest.fixture
def node():
    return load_node("xeon_amx_rtx_4090_x1")


def with_cores(node, cores):
    cpu = node.host.cpu.model_copy(update={"num_units": cores})
    return node.model_copy(update={"host": node.host.model_copy(update={"cpu": cpu})})


def test_many_cores_wait_for_the_memory_and_few_for_unpacking(node):
    rates = hybrid_rates()
    many = cpu_unit(with_cores(node, 1000), INT4, HostWork(), rates).seconds(ONE)[0]
    given = node.host.dram.bandwidth_bytes_per_s * rates.cpu_bandwidth_fraction
    assert many == pytest.approx(rates.cpu_expert_s + INT4.weight_bytes_per_expert / given)
    few = cpu_unit(with_cores(node, 2), INT4, HostWork(), rates).seconds(ONE)[0]
    unpacked = 2 * node.host.num_sockets * node.host.cpu.clock_hz * rates.cpu_weights_per_cycle["int4"]
    assert few == pytest.approx(rates.cpu_expert_s + INT4.weights_per_expert / unpacked)


def test_a_format_that_unpacks_slower_takes_longer_on_few_cores_though_it_has_fewer_bytes(node):
    mxfp4 = replace(INT4, weight_dtype="mxfp4")
    times = [
        cpu_unit(with_cores(node, 2), op, HostWork(), hybrid_rates()).seconds(ONE)[0] for op in (INT4, mxfp4)
    ]
    assert times[0] < times[1]


def test_the_hand_over_grows_with_the_threads_of_a_program_that_meets_at_barriers(node):
    rates = hybrid_rates("llama.cpp")
    found = [cpu_unit(node, INT4, HostWork(cpu_threads=n), rates).first_s for n in (4, 8, 12)]
    assert (
        found[2] - found[1]
        == pytest.approx(found[1] - found[0])
        == pytest.approx(4 * rates.handover_thread_s)
    )
    assert hybrid_rates("kt-kernel").handover_thread_s == 0


def test_a_program_that_is_not_described_names_those_that_are():
    with pytest.raises(InputError, match="accepted: kt-kernel, ktransformers, llama.cpp"):
        hybrid_rates("exllama")
