import pytest

from moesim.errors import InputError
from moesim.scenario.from_command import scenario_of_command
from moesim.scenario.resolve import resolve_tree
from moesim.scenario.serving import build_serving
from moesim.serving.commands import read_command
from moesim.serving.engine import Hold
from moesim.serving.from_command import commanded
from moesim.serving.machines import cluster_for

VLLM = "vllm serve Qwen/Qwen3-30B-A3B-FP8 --tensor-parallel-size 4 --enable-expert-parallel"


def test_vllm_flags_in_their_spellings():
    command = read_command(
        f"CUDA_VISIBLE_DEVICES=0 {VLLM} --max_num_seqs=512 -dp 2 --port 80 \\\n --no-such 3"
    )
    assert (command.tp, command.attention_dp, command.ep, command.data_parallel) == (4, 2, 8, 1)
    assert command.max_num_seqs == 512
    assert command.without_effect == ("--port",)
    assert command.unknown == ("--no-such",)
    assert read_command("vllm serve X/Y -dp 2").data_parallel == 2


def test_sglang_divides_its_ranks_by_attention_groups():
    text = "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --tp 8 --dp 4"
    assert (read_command(text).tp, read_command(text).data_parallel) == (8, 4)
    shared = read_command(
        f"{text} --enable-dp-attention --chunked-prefill-size 16384 --mem-fraction-static 0.8"
    )
    assert (shared.tp, shared.attention_dp, shared.num_devices) == (2, 4, 8)
    assert shared.memory_fraction == 0.8


def test_trtllm_reads_its_options_file(tmp_path):
    options = tmp_path / "extra.yml"
    options.write_text(
        "enable_attention_dp: true\nmoe_expert_parallel_size: 8\nmystery: 1\nstream_interval: 10\n"
        "kv_cache_config: {dtype: fp8, free_gpu_memory_fraction: 0.8}\n"
        "speculative_config: {decoding_type: MTP, num_nextn_predict_layers: 2}\n"
    )
    command = read_command(
        f"trtllm-serve nvidia/DeepSeek-R1-FP4 --tp_size 8 --extra_llm_api_options {options}"
    )
    assert (command.tp, command.attention_dp, command.ep) == (1, 8, 8)
    assert (command.kv, command.draft_tokens) == ("fp8", 2)
    assert command.unknown == ("extra.yml: mystery",)


def test_engines_may_be_told_to_look_at_new_requests_now_and_then(tmp_path):
    text = "python3 -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --tp 8"
    assert read_command(text).hold is None
    assert read_command(f"{text} --scheduler-recv-interval 1").hold is None
    assert read_command(f"{text} --scheduler-recv-interval 30").hold == Hold(30)
    options = tmp_path / "extra.yml"
    options.write_text("batch_wait_timeout_iters: 20\nbatch_wait_max_tokens_ratio: 0.9\n")
    waits = "trtllm-serve nvidia/DeepSeek-R1-FP4 --tp_size 8 --extra_llm_api_options"
    assert read_command(f"{waits} {options}").hold == Hold(20, gathers=True, fill=0.9)
    options.write_text("batch_wait_timeout_iters: 20\n")
    assert read_command(f"{waits} {options}").hold is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("vllm serve X -tp two --max-num-seqs many", "2 problems"),
        ("python train.py", "accepted: 'vllm serve MODEL ...'"),
        ("vllm serve --port 3", "no model"),
        ("vllm serve X --kv-cache-dtype int3", "--kv-cache-dtype: got 'int3'"),
        ("vllm serve 'unclosed", "not a command line"),
        ("sglang serve --model X --tp 8 --dp 3 --enable-dp-attention", "a divisor of --tp-size 8"),
    ],
)
def test_wrong_commands_are_told(text, told):
    with pytest.raises(InputError) as error:
        read_command(text)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("model", "name", "weights", "experts"),
    [
        ("Qwen/Qwen3-235B-A22B-Instruct-2507-FP8", "qwen3_235b_a22b", "fp8_block", "fp8_block"),
        ("nvidia/DeepSeek-R1-0528-FP4-v2", "deepseek_r1", "nvfp4", "nvfp4"),
        ("deepseek-ai/DeepSeek-V3-0324", "deepseek_v3", "fp8_block", "fp8_block"),
        ("openai/gpt-oss-120b", "gpt_oss_120b", "bf16", "mxfp4"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama_3_1_8b", "bf16", "bf16"),
    ],
)
def test_repositories_name_model_and_formats(model, name, weights, experts):
    found = commanded(read_command(f"vllm serve {model} -tp 8"), "b200", "0.15.0")
    assert found.deployment.model.name == name
    assert (found.deployment.dtypes.weights, found.deployment.dtypes.experts) == (weights, experts)


def test_balancing_of_experts_is_read():
    """Defaults of vLLM's EPLBConfig, and of SGLang's rebalancing."""
    vllm = read_command(f"{VLLM} -dp 2 --enable-eplb --eplb-config '{{\"num_redundant_experts\": 16}}'")
    assert (vllm.redundant_experts, vllm.rebalance_every, vllm.rebalance_window) == (16, 3000, 1000)
    text = "sglang serve --model X --tp 8 --ep 8 --ep-num-redundant-experts 8"
    assert read_command(text).rebalance_every is None
    assert read_command(f"{text} --enable-eplb").rebalance_every == 1000
    tree, _ = scenario_of_command(f"{VLLM} --enable-eplb --num-redundant-experts 8", "h200_sxm", "0.15.1")
    assert tree.data["placement"] == {"method": "eplb", "redundant_experts": 8}
    built = build_serving(resolve_tree(tree))
    assert built.experts is not None
    assert built.pools[0].deployment.redundant_experts == 8


def test_what_is_assumed_is_said():
    found = commanded(read_command(f"{VLLM} --no-such 3"), "h200_sxm")
    assert found.deployment.plan.ep == 4
    assert any("newest version" in warning and "of vllm" in warning for warning in found.warnings)
    assert any("--no-such" in warning for warning in found.warnings)
    with pytest.raises(InputError, match="no model 'qwen9_1b'"):
        commanded(read_command("vllm serve Qwen/Qwen9-1B"), "h200")


@pytest.mark.parametrize(
    ("device", "num_devices", "machine"),
    [
        ("a100", 2, "a100_x8"),
        ("a100_sxm_40", 1, "a100_40_x8"),
        ("rtx_4090", 1, "rtx_4090_x1"),
        ("h20", 32, "h20_x32"),
    ],
)
def test_a_device_stands_for_its_plainest_machine(device, num_devices, machine):
    assert cluster_for(device, num_devices).name == machine


def test_a_device_without_a_network_is_not_multiplied():
    with pytest.raises(InputError, match="8 t4 wanted, the largest described machine has 1"):
        cluster_for("t4", 8)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("tensor_parallel_size: many", "tensor_parallel_size"),
        ("batch_wait_timeout_iters: soon\nbatch_wait_max_tokens_ratio: 0.5", "batch_wait_timeout_iters"),
        ("batch_wait_max_tokens_ratio: 2", "batch_wait_max_tokens_ratio"),
        ("kv_cache_config: {free_gpu_memory_fraction: 90}", "kv_cache_config.free_gpu_memory_fraction"),
        ("speculative_config: {max_draft_len: x}", "speculative_config.max_draft_len"),
        ("enable_attention_dp: maybe", "enable_attention_dp"),
    ],
)
def test_wrong_values_of_an_options_file_are_told_with_their_line(tmp_path, text, field):
    path = tmp_path / "options.yaml"
    path.write_text(f"print_iter_log: true\n{text}\n")
    with pytest.raises(InputError, match=rf"options.yaml:[23].*{field}: got .*; accepted: "):
        read_command(f"trtllm-serve deepseek-ai/DeepSeek-R1 --extra_llm_api_options {path}")


@pytest.mark.parametrize(
    "flags",
    [
        """--enable-eplb --eplb-config '{"step_interval": "x"}'""",
        """--speculative-config '{"method": "mtp", "num_speculative_tokens": "x"}'""",
    ],
)
def test_wrong_values_inside_a_flag_are_told(flags):
    with pytest.raises(InputError, match="got 'x'; accepted: a whole number"):
        read_command(f"vllm serve deepseek-ai/DeepSeek-R1 {flags}")
