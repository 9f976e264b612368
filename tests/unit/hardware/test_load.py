import pytest

from moesim.errors import InputError
from moesim.files import Tree, read_tree, set_value
from moesim.hardware import load_cluster, load_device, load_node, profile_names, resolve_cluster

GOOD = """\
schema_version: 1
name: {name}
kind: gpu
memory:
  hbm: {{capacity_bytes: 8.0e10, bandwidth_bytes_per_s: 3.0e12}}
peak_flops_per_s: {{bf16: 1.0e15}}
num_units: 100
launch_s: 2.0e-6
idle_w: 50
busy_w: 500
sources: {{memory: "assumed: x", peak_flops_per_s: "assumed: x", num_units: "assumed: x",
  launch_s: "assumed: x", idle_w: "assumed: x", busy_w: "assumed: x"}}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MOESIM_PATH", str(tmp_path))
    return tmp_path


def write(folder, name, text):
    (folder / f"{name}.yaml").write_text(text)


def problems_of(call, *args):
    with pytest.raises(InputError) as caught:
        call(*args)
    return [str(problem) for problem in caught.value.problems]


def test_own_file_is_found(folder):
    write(folder, "mine", GOOD.format(name="mine"))
    assert load_device("mine").num_units == 100
    assert load_device(str(folder / "mine.yaml")).name == "mine"
    assert "mine" in profile_names()


def test_four_problems_in_one_go(folder):
    """The example of the error format: bound, missing field, misspelt field, word for a number."""
    text = GOOD.format(name="demo").replace("capacity_bytes: 8.0e10", "capacity_bytes: -1")
    text = text.replace("bandwidth_bytes_per_s", "bandwith_bytes_per_s").replace("bf16: 1.0e15", "bf16: fast")
    write(folder, "demo", text)
    with pytest.raises(InputError) as caught:
        load_device("demo")
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("demo.yaml: 4 problems")
    assert sorted(line.strip() for line in lines) == [
        "demo.yaml:5  memory.hbm.bandwidth_bytes_per_s: missing (required)",
        "demo.yaml:5  memory.hbm.bandwith_bytes_per_s: unknown field; did you mean 'bandwidth_bytes_per_s'?",
        "demo.yaml:5  memory.hbm.capacity_bytes: got -1; accepted: a number > 0 [bytes]",
        "demo.yaml:6  peak_flops_per_s.bf16: got 'fast'; accepted: a plain number in SI base units",
    ]


def test_negative_bandwidth_in_a_nested_profile_keeps_its_line(folder):
    write(folder, "bad", GOOD.format(name="bad").replace("3.0e12", "-3.0e12"))
    tree = Tree({"profile": "h200_x8", "device": "bad"})
    (problem,) = problems_of(load_node, tree)
    where, told = problem.split(": ", 1)
    assert where == "bad.yaml:5  device.memory.hbm.bandwidth_bytes_per_s"
    assert told == "got -3000000000000.0; accepted: a number > 0 [bytes/s]"


def test_duplicate_key_is_told_with_its_line(folder):
    write(folder, "twice", GOOD.format(name="twice") + "busy_w: 600\n")
    (problem,) = problems_of(load_device, "twice")
    assert "twice.yaml:13" in problem
    assert "duplicate key" in problem


def test_name_must_be_the_file_name(folder):
    write(folder, "one", GOOD.format(name="two").replace("num_units: 100", "num_units: 0"))
    problems = problems_of(load_device, "one")
    assert "one.yaml:2  name: got 'two'; accepted: the name of the file, 'one'" in problems
    assert len(problems) == 2


def test_number_without_source_and_source_without_field(folder):
    text = GOOD.format(name="mine").replace('busy_w: "assumed: x"', 'busy_watts: "assumed: x"')
    write(folder, "mine", text)
    problems = problems_of(load_device, "mine")
    assert problems[0].startswith("mine.yaml:10  busy_w: has no source")
    assert problems[1].startswith("mine.yaml:12  sources.busy_watts: names no field")


def test_circle_is_refused(folder):
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        write(folder, name, f"schema_version: 1\nname: {name}\nprofile: {base}\n")
    assert problems_of(load_device, "a") == [
        "c.yaml:3  profile: profiles refer to one another in a circle: a -> b -> c -> a"
    ]


def test_node_may_not_hold_itself(folder):
    write(folder, "n", "schema_version: 1\nname: n\nprofile: h200_x8\ndevice: n\n")
    assert "circle: n -> n" in problems_of(load_node, "n")[0]


def test_unknown_name_proposes_the_nearest():
    (problem,) = problems_of(load_cluster, Tree({"node": {"profile": "h200_x8", "device": "h200_smx"}}))
    assert problem.startswith("node.device: no file 'h200_smx'; did you mean 'h200_sxm'?")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("h200_sxm", "describes a device; accepted: a cluster or node profile"),
        ({"profile": "h200_x8", "node": "h200_x32"}, "describes a cluster; accepted: a node profile"),
        ({"profile": 3}, "accepted: a profile name"),
        (4, "accepted: a cluster profile name or a mapping"),
        ([], "accepted: a cluster profile name or a mapping"),
    ],
)
def test_wrong_kinds_are_told(data, message):
    assert message in problems_of(load_cluster, Tree(data))[0]


def scenario(tmp_path, text):
    path = tmp_path / "scenario.yaml"
    path.write_text(text)
    return read_tree(path)


def test_scenario_override_reaches_the_device_and_says_where_it_was_set(tmp_path):
    tree = scenario(
        tmp_path,
        "name: x\ncluster:\n  profile: h200_x32\n  num_nodes: 8\n"
        "  node: {device: {memory: {hbm: {bandwidth_bytes_per_s: 9.6e12}}}}\n",
    )
    resolved = resolve_cluster(tree)
    cluster = load_cluster(resolved.sub("cluster"))
    plain = load_cluster("h200_x32")
    path = "memory.hbm.bandwidth_bytes_per_s"
    assert cluster.num_devices == 64
    assert cluster.node.device.main_memory.bandwidth_bytes_per_s == 9.6e12
    assert cluster.node.device.source_of(path) == "assumed: set at scenario.yaml:5"
    assert cluster.node.device.source_of("num_units") == plain.node.device.source_of("num_units")
    assert cluster.node.device.memory["hbm"].capacity_bytes == plain.node.device.main_memory.capacity_bytes
    assert resolved.where(("cluster", "num_nodes")) == "scenario.yaml:4"
    assert resolved.where(("cluster", "node", "nic")).startswith("h200_x8.yaml:")
    assert tree.data["cluster"]["num_nodes"] == 8
    assert resolved.data["name"] == "x"


def test_set_after_resolving_reaches_every_leaf_and_no_other_run():
    first = resolve_cluster(Tree({"cluster": "h200_x8"}))
    set_value(first, "cluster.node.device.memory.hbm.bandwidth_bytes_per_s=1.0e12")
    assert load_cluster(first.sub("cluster")).node.device.main_memory.bandwidth_bytes_per_s == 1e12
    assert load_cluster("h200_x8").node.device.main_memory.bandwidth_bytes_per_s == 4.8e12


def test_named_override_replaces_what_was_there():
    cluster = load_cluster(
        Tree({"profile": "h200_x32", "node": {"device": {"profile": "b200_sxm", "num_units": 100}}})
    )
    assert cluster.node.device.name == "b200_sxm"
    assert cluster.node.device.num_units == 100
    assert "nvfp4" in cluster.node.device.peak_flops_per_s


def test_node_becomes_a_cluster_with_an_assumed_network():
    cluster = load_cluster(Tree({"node": "h200_x8", "num_nodes": 4}))
    assert cluster.num_devices == 32
    assert cluster.scale_out.kind == "rail_optimised"
    assert cluster.source_of("scale_out").startswith("assumed")
    assert load_cluster("laptop_x1").scale_out.kind == "none"


def test_profile_may_build_on_another():
    h800, h100 = load_device("h800_sxm"), load_device("h100_sxm")
    assert h800.name == "h800_sxm"
    assert h800.peak_flops_per_s == h100.peak_flops_per_s
    workstation = load_device("rtx_pro_6000_workstation")
    assert workstation.source_of("clock_hz") != load_device("rtx_pro_6000").source_of("clock_hz")
    assert "Workstation" in workstation.source_of("peak_flops_per_s.fp8")


def test_tree_without_cluster_is_left_alone():
    assert resolve_cluster(Tree({"name": "x"})).data == {"name": "x"}


@pytest.mark.parametrize(
    ("name", "num_nodes", "domain"),
    [("h100_x512", 64, 1), ("rtx_4090_x16", 2, 1), ("gb200_x32", 8, 8), ("gb200_nvl72_x4", 72, 18)],
)
def test_name_with_another_number_is_the_described_machine_with_more_or_fewer_nodes(name, num_nodes, domain):
    cluster = load_cluster(name)
    assert (cluster.name, cluster.num_nodes, cluster.scale_up_domain_nodes) == (name, num_nodes, domain)
    assert cluster.sources["num_nodes"].startswith("assumed: ")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100_x12", "accepted: whole nodes, as h100_x1024 has; did you mean 'h100_x"),
        ("laptop_x2", "num_nodes=2 needs a network"),
        ("nothing_x8", "no file 'nothing_x8'"),
    ],
)
def test_name_with_a_number_that_no_machine_can_have(name, message):
    assert message in problems_of(load_cluster, name)[0]
