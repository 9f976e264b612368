import json

import pytest

from moesim.model import load
from moesim.model.load import BUNDLED
from moesim.serving.checkpoints import stored_formats

GROUPS = {"group_0": {"weights": {"num_bits": 4, "group_size": 32, "type": "int"}}}


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8_block"),
        ({"quant_method": "fp8"}, "fp8"),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, "mxfp4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "awq", "bits": 8}, "int8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_algo": "FP8", "config_groups": {}}, "fp8"),
        ({"quant_method": "compressed-tensors", "config_groups": GROUPS}, "int4_g32"),
        ({"quant_method": "never heard of"}, ""),
        (None, ""),
        ("nonsense", ""),
    ],
)
def test_format_of_a_checkpoint_is_read_from_its_configuration(tmp_path, said, stored):
    config = json.loads((BUNDLED / "olmoe_1b_7b.json").read_text()) | {"quantization_config": said}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    assert load(str(path)).stored_as == stored


@pytest.mark.parametrize(
    ("model", "weights", "experts"),
    [
        ("deepseek_r1", "fp8_block", "fp8_block"),
        ("kimi_k2", "fp8_block", "fp8_block"),
        ("kimi_k2_5", "bf16", "int4_g32"),
        ("kimi_k2_thinking", "bf16", "int4_g32"),
        ("gpt_oss_120b", "bf16", "mxfp4"),
        ("minimax_m2", "fp8_block", "fp8_block"),
    ],
)
def test_bundled_models_are_stored_as_published(model, weights, experts):
    stored = load(model).stored_as
    formats = stored_formats(model, stored, stored)
    assert (formats.weights, formats.experts) == (weights, experts)
