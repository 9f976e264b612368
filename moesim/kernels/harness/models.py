"""Whole models: wall time of prefill and decode steps of Hugging Face MoE models on this machine.

These rows are never fitted to; they are what predictions are compared with. Needs transformers. The
family ``step`` is the whole model, ``layer`` one block of experts with its router, once for each
implementation of the experts that the library offers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .machine import provenance
from .output import add_row, done, file_of, start
from .timing import Timing, measure

PREFILLS = ((1, 32), (1, 128), (4, 128), (8, 256))
"""Sequences, tokens of each."""
DECODES = ((1, 128), (4, 128), (16, 128), (16, 512), (64, 256))
"""Sequences, tokens of context."""
IMPLEMENTATIONS = ("eager", "batched_mm", "grouped_mm")
LAYER_TOKENS = (1, 16, 256, 2048)

Row = tuple[str, str, str, int, int, int, Callable[[], Timing]]
"""Family, source, phase, sequences, tokens, context, and how to time it."""


def measure_models(
    folders: list[Path],
    folder: Path,
    *,
    name: str,
    device: str = "cpu",
    dtype: str = "fp32",
    families: list[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[Path]:
    """Times of every prefill and decode shape of some models; files written to.

    Parameters
    ----------
    folders : list of Path
        Each holds a ``config.json``; weights are loaded where they are there, else drawn at random.
    folder : Path
        Where the CSV files are; what they hold already is not measured again.
    name : str
        Name of the device's profile, for the record.
    device, dtype : str
        ``cpu`` or ``cuda``; ``fp32``, ``bf16`` or ``fp16``.
    families : list of str, optional
        ``step`` or ``layer``; both by default.
    progress : callable, optional
        Called with a line for each row.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    known, facts = done(folder), provenance(device, name)
    written: dict[Path, None] = {}
    for place in folders:
        model = load(place, device, dtype)
        with torch.inference_mode():
            for family, source, phase, sequences, tokens, context, time in _rows(model, device):
                if families and family not in families:
                    continue
                shape = {"num_sequences": sequences, "query_tokens": tokens, "context_tokens": context}
                words = {"model": model_name(place), "phase": phase}
                key = (family, source, dtype, *(f"{k}={v}" for k, v in (words | shape).items()))
                if (*key[:3], *sorted(key[3:])) in {(*k[:3], *sorted(k[3:])) for k in known}:
                    continue
                if progress is not None:
                    progress(f"{model_name(place)} {family} {phase} {sequences} x {max(tokens, context)}")
                try:
                    timing = time()
                except (RuntimeError, NotImplementedError, ValueError):
                    continue  # this device or library has no such implementation
                path = file_of(folder, facts["date"], family)
                start(path, family, facts)
                values = [source, dtype, *words.values(), *(str(v) for v in shape.values())]
                if family == "step":
                    values.append(expert_tokens(model, sequences, tokens, context, device))
                add_row(path, values, timing)
                written[path] = None
    return list(written)


def model_name(folder: Path) -> str:
    """Name of a model folder; a checkpoint is called like the folder that holds it."""
    return folder.parent.name if folder.name == "checkpoint" else folder.name


def load(folder: Path, device: str, dtype: str) -> Any:
    """Model of a folder in evaluation mode."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    torch.manual_seed(0)
    if any(folder.glob("*.safetensors")):
        model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=wanted)
    else:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        model = AutoModelForCausalLM.from_config(config, dtype=wanted)
    choose_experts(model, "eager")
    return model.to(device).eval()


def choose_experts(model: Any, implementation: str) -> None:
    """Set how the model computes its experts, where the library lets one choose."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(implementation)


def _rows(model: Any, device: str) -> Iterator[Row]:
    import torch

    vocabulary = model.config.vocab_size
    for sequences, length in PREFILLS:
        ids = torch.randint(0, vocabulary, (sequences, length), device=device)
        run = partial(model, ids, logits_to_keep=1)
        yield "step", "transformers", "prefill", sequences, length, 0, partial(measure, [run], device)
    for sequences, length in DECODES:
        time = partial(_decode, model, sequences, length, vocabulary, device)
        yield "step", "transformers", "decode", sequences, 1, length, time
        if device.startswith("cuda"):
            time = partial(_graph, model, sequences, length, vocabulary, device)
            yield "step", "transformers_graph", "decode", sequences, 1, length, time
    block = next((layer.mlp for layer in model.model.layers if hasattr(layer.mlp, "experts")), None)
    if block is None:
        return
    for implementation in IMPLEMENTATIONS if hasattr(model, "set_experts_implementation") else ("eager",):
        for tokens in LAYER_TOKENS:
            time = partial(_block, model, block, implementation, tokens, device)
            yield "layer", f"transformers_{implementation}", "moe_block", 1, tokens, 0, time
    choose_experts(model, "eager")


def expert_tokens(model: Any, sequences: int, tokens: int, context: int, device: str) -> str:
    """Tokens of each expert in a step of this shape, ``5 0 3|2 2 4``: random ids, as those timed."""
    import torch

    counts: dict[str, str] = {}

    def seen(name: str, experts: Any, given: tuple[Any, ...]) -> None:
        chosen = next((x for x in given if torch.is_tensor(x) and not x.is_floating_point()), None)
        if chosen is not None:
            found = torch.bincount(chosen.flatten().cpu(), minlength=experts.num_experts)
            counts[name] = " ".join(map(str, found.tolist()))

    hooks = [
        module.register_forward_pre_hook(partial(seen, name))
        for name, module in model.named_modules()
        if name.endswith(".experts") and hasattr(module, "num_experts")
    ]
    try:
        ids = torch.randint(0, model.config.vocab_size, (sequences, context or tokens), device=device)
        cache = model(ids, use_cache=True, logits_to_keep=1).past_key_values
        if context:
            model(ids[:, :tokens], past_key_values=cache, use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
    return "|".join(counts.values())


def _block(model: Any, block: Any, implementation: str, tokens: int, device: str) -> Timing:
    import torch

    choose_experts(model, implementation)
    x = torch.randn(1, tokens, model.config.hidden_size, device=device).to(model.dtype)
    return measure([partial(block, x)], device)


def _decode(model: Any, sequences: int, length: int, vocabulary: int, device: str) -> Timing:
    """One new token a sequence against a cache of ``length``, cut back to it after every step."""
    import torch

    prompt = torch.randint(0, vocabulary, (sequences, length), device=device)
    cache = model(prompt, use_cache=True, logits_to_keep=1).past_key_values
    token = torch.randint(0, vocabulary, (sequences, 1), device=device)

    def step() -> None:
        model(token, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return measure([step], device)


def _graph(model: Any, sequences: int, length: int, vocabulary: int, device: str) -> Timing:
    """The same step captured once as a CUDA graph over a cache of fixed size, and replayed."""
    import torch
    from transformers import StaticCache

    choose_experts(model, "grouped_mm")
    try:
        cache = StaticCache(config=model.config, max_cache_len=length + 1)
        prompt = torch.randint(0, vocabulary, (sequences, length), device=device)
        model(prompt, past_key_values=cache, use_cache=True, logits_to_keep=1)
        token = torch.randint(0, vocabulary, (sequences, 1), device=device)
        place = torch.tensor([length], device=device)
        step = partial(model, token, past_key_values=cache, cache_position=place, use_cache=True)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return measure([graph.replay], device)
    finally:
        choose_experts(model, "eager")
