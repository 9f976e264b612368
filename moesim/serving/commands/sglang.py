"""``python -m sglang.launch_server --model-path MODEL ...``"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.errors import InputError, Problem
from moesim.serving.commands.base import (
    SERVER_FLAGS,
    Command,
    Flags,
    engine_commands,
    fraction,
    sends_to_experts,
    whole,
)
from moesim.serving.engine import Hold

FLAGS = Flags(
    values={
        "--model-path": ("model", str),
        "--model": ("model", str),
        "--tensor-parallel-size": ("tp", whole),
        "--tp-size": ("tp", whole),
        "--tp": ("tp", whole),
        "--pipeline-parallel-size": ("pp", whole),
        "--pp-size": ("pp", whole),
        "--data-parallel-size": ("dp", whole),
        "--dp-size": ("dp", whole),
        "--dp": ("dp", whole),
        "--expert-parallel-size": ("ep", whole),
        "--ep-size": ("ep", whole),
        "--ep": ("ep", whole),
        "--quantization": ("weights", str),
        "--kv-cache-dtype": ("kv", str),
        "--chunked-prefill-size": ("chunk", int),
        "--max-running-requests": ("max_num_seqs", whole),
        "--mem-fraction-static": ("memory_fraction", fraction),
        "--page-size": ("block_tokens", whole),
        "--max-total-tokens": ("total_tokens", whole),
        "--speculative-algorithm": ("speculative", str),
        "--speculative-num-steps": ("draft_tokens", whole),
        "--scheduler-recv-interval": ("look_every", whole),
        "--ep-num-redundant-experts": ("redundant_experts", whole),
        "--eplb-rebalance-num-iterations": ("rebalance_every", whole),
        "--moe-a2a-backend": ("all_to_all", sends_to_experts),
    },
    switches={
        "--enable-dp-attention": ("dp_attention", True),
        "--enable-ep-moe": ("ep_moe", True),
        "--enable-deepep-moe": ("all_to_all", True),
        "--enable-eplb": ("eplb", True),
        "--enable-two-batch-overlap": ("overlap", "two_batch"),
        "--disable-radix-cache": ("prefix_caching", False),
    },
    without_effect=SERVER_FLAGS
    | {
        *("--tokenizer-path", "--log-level", "--log-requests", "--random-seed", "--context-length"),
        *("--device", "--enable-metrics", "--watchdog-timeout", "--nnodes", "--node-rank"),
        *("--dist-init-addr", "--decode-log-interval"),
    },
)

KV_LABELS = {"auto": "", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "bf16": "bf16", "bfloat16": "bf16"}
SETTINGS = (
    *("pp", "weights", "max_num_seqs", "memory_fraction", "block_tokens"),
    *("prefix_caching", "draft_tokens", "overlap", "all_to_all"),
)


@engine_commands.register("sglang")
@dataclass(frozen=True)
class SglangLaunch:
    """With attention data parallelism ``--tp`` counts all devices of an instance; ``--dp`` divides them."""

    def matches(self, words: Sequence[str]) -> bool:
        """``python -m sglang.launch_server`` or ``sglang serve``."""
        return "sglang.launch_server" in words[:3] or list(words[:2]) == ["sglang", "serve"]

    def read(self, words: Sequence[str]) -> Command:
        """As :class:`Reader`."""
        start = words.index("sglang.launch_server") + 1 if "sglang.launch_server" in words else 2
        parsed = FLAGS.parse(words[start:])
        values = dict(parsed.settings)
        model = values.get("model") or next(iter(parsed.positional), "")
        if not model:
            raise InputError([Problem("--from", "no model: --model-path MODEL")])
        unknown = list(parsed.unknown)
        algorithm = values.get("speculative", "NEXTN")
        if algorithm not in {"NEXTN", "EAGLE"}:
            values.pop("draft_tokens", None)
            unknown.append(f"--speculative-algorithm {algorithm}")
        size, dp = values.get("tp", 1), values.get("dp", 1)
        shares = bool(values.get("dp_attention"))
        if shares and size % dp:
            raise InputError.at("--dp-size", dp, f"a divisor of --tp-size {size} with --enable-dp-attention")
        kv = values.get("kv", "auto")
        if kv not in KV_LABELS:
            raise InputError.at("--kv-cache-dtype", kv, ", ".join(KV_LABELS))
        rebalance_every = values.get("rebalance_every", 1000) if values.get("eplb") else None
        look_every = values.get("look_every", 1)
        block, total, chunk = values.get("block_tokens", 1), values.get("total_tokens"), values.get("chunk")
        return Command(
            engine="sglang",
            model=model,
            tp=size // dp if shares else size,
            attention_dp=dp if shares else 1,
            data_parallel=1 if shares else dp,
            ep=values.get("ep", size if values.get("ep_moe") or values.get("all_to_all") else 1),
            kv=KV_LABELS[kv],
            redundant_experts=values.get("redundant_experts", 0),
            rebalance_every=rebalance_every,
            rebalance_window=rebalance_every,
            max_num_batched_tokens=chunk if chunk and chunk > 0 else None,
            chunked_prefill=None if chunk is None else chunk > 0,
            num_blocks=total // block if total else None,
            hold=Hold(look_every) if look_every > 1 else None,
            without_effect=tuple(parsed.without_effect),
            unknown=tuple(unknown),
            **{name: values[name] for name in SETTINGS if name in values},
        )
