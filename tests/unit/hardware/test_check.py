from moesim.files import Tree
from moesim.hardware import load_device
from moesim.hardware.check import implausible, unlikely_peaks


def test_slipped_prefix_is_told_with_its_range():
    tree = Tree(
        {"memory": {"hbm": {"bandwidth_bytes_per_s": 4.8}}, "launch_s": 2.0}, {("launch_s",): "x.yaml:3"}
    )
    assert [str(problem) for problem in implausible(tree)] == [
        "memory.hbm.bandwidth_bytes_per_s: got 4.8; believable: 100 MB/s to 1.00 PB/s",
        "x.yaml:3  launch_s: got 2.0; believable: 0 s to 10.0 ms",
    ]


def test_sparse_figure_is_suspected():
    h100 = load_device("h100_sxm")
    sparse = h100.model_copy(update={"peak_flops_per_s": h100.peak_flops_per_s | {"fp8": 3957.8e12}})
    assert unlikely_peaks(h100) == []
    assert unlikely_peaks(sparse) == ["peak_flops_per_s.fp8 is 4 times bf16 or fp16: sparse?"]


def test_balance_outside_of_any_machine_is_suspected():
    h100 = load_device("h100_sxm")
    slow = h100.model_copy(update={"peak_flops_per_s": {"bf16": 989.4e9 / 10}})
    assert "FLOP per byte" in unlikely_peaks(slow)[0]
