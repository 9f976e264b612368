"""Number format of a published checkpoint, from the ``quantization_config`` of its ``config.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moesim.model.config_fields import ConfigFields

_WHOLE_WORD = {"mxfp4": "mxfp4", "nvfp4": "nvfp4", "fbgemm_fp8": "fp8"}
_BY_BITS = {4: "int4", 8: "int8"}


def stored_as(fields: ConfigFields) -> str:
    """Format of the quantised weights (:data:`~moesim.model.dtypes.FORMATS`); "" if nothing is said.

    Which parts are left as they were is not told here: ``engines/checkpoints.yaml`` says it.

    Source: ``QuantizationConfig`` classes of Hugging Face transformers; ``hf_quant_config.json`` of
    NVIDIA ModelOpt; compressed-tensors' ``config_groups``.
    """
    config = fields.raw("quantization_config") or {}
    if not isinstance(config, Mapping):
        return ""
    method = str(config.get("quant_method", "")).lower()
    if method == "fp8":
        return "fp8_block" if config.get("weight_block_size") else "fp8"
    if method in ("awq", "gptq"):
        return _BY_BITS.get(_whole(config.get("bits", config.get("w_bit"))), "")
    if method.startswith("modelopt") or "quant_algo" in config:
        return "nvfp4" if "FP4" in str(config.get("quant_algo", "")).upper() else "fp8"
    if method == "compressed-tensors":
        return _compressed(config)
    return _WHOLE_WORD.get(method, "")


def _compressed(config: Mapping[str, Any]) -> str:
    """Format of the first group of weights."""
    groups = config.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        bits, size = _whole(weights.get("num_bits")), _whole(weights.get("group_size"))
        if weights.get("type") == "float":
            return "nvfp4" if bits == 4 else "fp8_block" if weights.get("block_structure") else "fp8"
        return "int4_g32" if (bits, size) == (4, 32) else _BY_BITS.get(bits, "")
    return ""


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
