"""``vllm serve MODEL ...``"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesim.errors import InputError, Problem
from moesim.serving.commands.base import (
    SERVER_FLAGS,
    Command,
    Flags,
    converted,
    engine_commands,
    fraction,
    mapping,
    more_than,
    sends_to_experts,
    whole,
)

FLAGS = Flags(
    values={
        "--model": ("model", str),
        "--tensor-parallel-size": ("tp", whole),
        "-tp": ("tp", whole),
        "--pipeline-parallel-size": ("pp", whole),
        "-pp": ("pp", whole),
        "--data-parallel-size": ("dp", whole),
        "-dp": ("dp", whole),
        "--quantization": ("weights", str),
        "-q": ("weights", str),
        "--kv-cache-dtype": ("kv", str),
        "--max-num-batched-tokens": ("max_num_batched_tokens", whole),
        "--max-num-seqs": ("max_num_seqs", whole),
        "--gpu-memory-utilization": ("memory_fraction", fraction),
        "--block-size": ("block_tokens", whole),
        "--num-gpu-blocks-override": ("num_blocks", whole),
        "--speculative-config": ("speculative", mapping),
        "--dbo-decode-token-threshold": ("overlap_decode_tokens", more_than),
        "--dbo-prefill-token-threshold": ("overlap_prefill_tokens", more_than),
        "--eplb-config": ("eplb_config", mapping),
        "--num-redundant-experts": ("redundant_experts", whole),
        "--all2all-backend": ("all_to_all", sends_to_experts),
    },
    switches={
        "--enable-expert-parallel": ("expert_parallel", True),
        "--no-enable-expert-parallel": ("expert_parallel", False),
        "--enable-chunked-prefill": ("chunked_prefill", True),
        "--no-enable-chunked-prefill": ("chunked_prefill", False),
        "--enable-prefix-caching": ("prefix_caching", True),
        "--no-enable-prefix-caching": ("prefix_caching", False),
        "--enable-eplb": ("eplb", True),
        "--enable-dbo": ("overlap", "two_batch"),
        "--no-enable-dbo": ("overlap", ""),
        "--async-scheduling": ("async_scheduling", True),
        "--no-async-scheduling": ("async_scheduling", False),
    },
    without_effect=SERVER_FLAGS
    | {
        *("--tokenizer", "--seed", "--enable-auto-tool-choice", "--uvicorn-log-level", "--max-model-len"),
        *("--disable-log-requests", "--disable-log-stats", "--hf-overrides", "--limit-mm-per-prompt"),
        *("--distributed-executor-backend", "--generation-config"),
    },
)

KV_LABELS = {"auto": "", "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "bfloat16": "bf16"}
SETTINGS = (
    *("tp", "pp", "weights", "max_num_batched_tokens", "max_num_seqs", "memory_fraction", "block_tokens"),
    *("num_blocks", "chunked_prefill", "prefix_caching", "async_scheduling", "all_to_all"),
    *("overlap", "overlap_decode_tokens", "overlap_prefill_tokens"),
)


@engine_commands.register("vllm")
@dataclass(frozen=True)
class VllmServe:
    """Data-parallel ranks share the experts of one instance if experts are parallel; else replicas."""

    def matches(self, words: Sequence[str]) -> bool:
        """``vllm serve`` or the module behind it."""
        return list(words[:2]) == ["vllm", "serve"] or "vllm.entrypoints.openai.api_server" in words[:3]

    def read(self, words: Sequence[str]) -> Command:
        """As :class:`Reader`."""
        parsed = FLAGS.parse(words[2:] if words[0] == "vllm" else words[3:])
        values = dict(parsed.settings)
        model = values.get("model") or next(iter(parsed.positional), "")
        if not model:
            raise InputError([Problem("--from", "no model: vllm serve MODEL ...")])
        method = str((values.get("speculative") or {}).get("method", "mtp"))
        unknown = list(parsed.unknown)
        if "mtp" not in method:
            values.pop("speculative")
            unknown.append(f"--speculative-config method {method}")
        experts = bool(values.get("expert_parallel"))
        tp, dp = values.get("tp", 1), values.get("dp", 1)
        return Command(
            engine="vllm",
            model=model,
            data_parallel=1 if experts else dp,
            attention_dp=dp if experts else 1,
            ep=tp * dp if experts else 1,
            kv=_kv(values.get("kv", "auto")),
            draft_tokens=_drafts(values.get("speculative")),
            **_rebalancing(values),
            without_effect=tuple(parsed.without_effect),
            unknown=tuple(unknown),
            **{name: values[name] for name in SETTINGS if name in values},
        )


def _kv(text: str) -> str:
    if text not in KV_LABELS:
        raise InputError.at("--kv-cache-dtype", text, ", ".join(KV_LABELS))
    return KV_LABELS[text]


def _rebalancing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of expert-parallel load balancing: those of ``EPLBConfig``, with its defaults."""
    given = values.get("eplb_config") or {}

    def number(key: str, default: int) -> int:
        return int(converted(f"--eplb-config {key}", given.get(key, default), whole))

    redundant = number("num_redundant_experts", values.get("redundant_experts", 0))
    if not values.get("eplb"):
        return {"redundant_experts": redundant}
    return {
        "redundant_experts": redundant,
        "rebalance_every": number("step_interval", 3000),
        "rebalance_window": number("window_size", 1000),
    }


def _drafts(config: Any) -> int | None:
    field = "num_speculative_tokens"
    return int(converted(f"--speculative-config {field}", config.get(field, 1), whole)) if config else None
