"""``trtllm-serve MODEL ... --extra_llm_api_options FILE.yaml``"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesim.errors import InputError, Problem
from moesim.files import read_tree
from moesim.serving.commands.base import (
    Command,
    Flags,
    converted,
    engine_commands,
    fraction,
    share,
    switch,
    whole,
)
from moesim.serving.engine import Hold

FLAGS = Flags(
    values={
        "--tp-size": ("tensor_parallel_size", whole),
        "--tp": ("tensor_parallel_size", whole),
        "--pp-size": ("pipeline_parallel_size", whole),
        "--pp": ("pipeline_parallel_size", whole),
        "--ep-size": ("moe_expert_parallel_size", whole),
        "--ep": ("moe_expert_parallel_size", whole),
        "--max-batch-size": ("max_batch_size", whole),
        "--max-num-tokens": ("max_num_tokens", whole),
        "--kv-cache-free-gpu-memory-fraction": ("memory_fraction", fraction),
        "--extra-llm-api-options": ("options", str),
        "--config": ("options", str),
    },
    without_effect=frozenset(
        {
            *("--host", "--port", "--tokenizer", "--trust-remote-code", "--log-level", "--backend"),
            *("--max-seq-len", "--max-input-len", "--gpus-per-node", "--reasoning-parser", "--tool-parser"),
        }
    ),
)

QUIET = frozenset(
    {
        *("print_iter_log", "max_seq_len", "trust_remote_code", "enable_iter_perf_stats", "model"),
        "stream_interval",
    }
)
"""Keys of the options file that change no time."""
WAITS = ("batch_wait_timeout_iters", "batch_wait_max_tokens_ratio")
"""How long prompts wait for others, and which share of the token budget ends the wait."""
DEGREES = {
    "tensor_parallel_size": "tp",
    "pipeline_parallel_size": "pp",
    "moe_expert_parallel_size": "ep",
    "max_batch_size": "max_num_seqs",
    "max_num_tokens": "max_num_batched_tokens",
    "enable_chunked_prefill": "chunked_prefill",
}
CACHE = {"free_gpu_memory_fraction": "memory_fraction", "enable_block_reuse": "prefix_caching"}
DRAFTS = ("num_nextn_predict_layers", "max_draft_len")
SWITCHES = frozenset({"enable_chunked_prefill", "enable_attention_dp", "enable_block_reuse"})
SHARES = {"batch_wait_max_tokens_ratio": share, "free_gpu_memory_fraction": fraction}
"""Settings of the options file that are no whole numbers, and what they are."""


@engine_commands.register("trtllm")
@dataclass(frozen=True)
class TrtllmServe:
    """Attention data parallelism runs over all ``tp`` ranks; the options file lies over the flags."""

    def matches(self, words: Sequence[str]) -> bool:
        """``trtllm-serve``."""
        return bool(words) and Path(words[0]).name == "trtllm-serve"

    def read(self, words: Sequence[str]) -> Command:
        """As :class:`Reader`."""
        parsed = FLAGS.parse([word for word in words[1:] if word != "serve"])
        values: dict[str, Any] = dict(parsed.settings)
        if not parsed.positional:
            raise InputError([Problem("--from", "no model: trtllm-serve MODEL ...")])
        options = values.pop("options", None)
        unknown = list(parsed.unknown)
        if options is not None:
            values |= _options(Path(options), unknown)
        settings = {name: values[key] for key, name in DEGREES.items() if values.get(key) is not None}
        size = settings.pop("tp", 1)
        shares = bool(values.get("enable_attention_dp"))
        return Command(
            engine="trtllm",
            model=parsed.positional[0],
            tp=1 if shares else size,
            attention_dp=size if shares else 1,
            ep=settings.pop("ep", 1),
            kv=str(values.get("kv", "")),
            memory_fraction=values.get("memory_fraction"),
            prefix_caching=values.get("prefix_caching"),
            draft_tokens=values.get("draft_tokens"),
            hold=_hold(values),
            without_effect=tuple(parsed.without_effect),
            unknown=tuple(unknown),
            **settings,
        )


def _hold(values: Mapping[str, Any]) -> Hold | None:
    iterations, filled = (values.get(name) or 0 for name in WAITS)
    if not iterations or not filled:
        return None
    return Hold(iterations, gathers=True, fill=filled)


def _options(path: Path, unknown: list[str]) -> dict[str, Any]:
    """Settings of an options file; keys that are not understood go to ``unknown``."""
    if not path.is_file():
        raise InputError([Problem("--extra-llm-api-options", f"no file {str(path)!r}")])
    found: dict[str, Any] = {}
    tree = read_tree(path)

    def taken(*keys: str) -> Any:
        value: Any = tree.data
        for key in keys:
            value = value[key]
        convert = switch if keys[-1] in SWITCHES else SHARES.get(keys[-1], whole)
        return None if value is None else converted(".".join(keys), value, convert, tree.where(keys))

    for key, value in tree.data.items():
        if key == "kv_cache_config" and isinstance(value, Mapping):
            found |= {own: taken(key, name) for name, own in CACHE.items() if name in value}
            if value.get("dtype") not in (None, "auto"):
                found["kv"] = str(value["dtype"])
        elif key == "speculative_config" and isinstance(value, Mapping):
            named = next((name for name in DRAFTS if name in value), None)
            found["draft_tokens"] = taken(key, named) if named else 1
        elif key in DEGREES or key == "enable_attention_dp" or key in WAITS:
            found[key] = taken(key)
        elif key not in QUIET:
            unknown.append(f"{path.name}: {key}")
    return found
