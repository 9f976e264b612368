"""Whole models: wall time of prefill and decode steps of Hugging Face MoE models on this machine.

These rows are never fitted to; they are what predictions are compared with. Needs transformers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .machine import provenance
from .output import add_row, start
from .timing import Timing, measure

PREFILLS = ((1, 32), (1, 128), (4, 128), (8, 256))
"""Sequences, tokens of each."""
DECODES = ((1, 128), (4, 128), (16, 128), (16, 512), (64, 256))
"""Sequences, tokens of context."""


def measure_models(
    folders: list[Path],
    path: Path,
    *,
    name: str,
    device: str = "cpu",
    dtype: str = "fp32",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Times of every prefill and decode shape of the models in ``folders``, as one CSV file.

    Parameters
    ----------
    folders : list of Path
        Each holds a ``config.json``; weights are loaded where they are there, else drawn at random.
    path : Path
        File to append to.
    name : str
        Name of the device's profile, for the record.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    start(path, "step", provenance(device, name))
    for folder in folders:
        model = load(folder, device, dtype)
        for phase, sequences, length, timing in _times(model, device):
            if progress is not None:
                progress(f"{model_name(folder)} {phase} {sequences} x {length}")
            tokens, context = (length, 0) if phase == "prefill" else (1, length)
            shape = [model_name(folder), phase, str(sequences), str(tokens), str(context)]
            add_row(path, ["transformers", dtype, *shape], timing)
    return path


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
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    return model.to(device).eval()


def _times(model: Any, device: str) -> Any:
    import torch

    vocabulary = model.config.vocab_size
    with torch.inference_mode():
        for sequences, length in PREFILLS:
            ids = torch.randint(0, vocabulary, (sequences, length), device=device)
            yield "prefill", sequences, length, measure([partial(model, ids, logits_to_keep=1)], device)
        for sequences, length in DECODES:
            yield "decode", sequences, length, _decode(model, sequences, length, vocabulary, device)


def _decode(model: Any, sequences: int, length: int, vocabulary: int, device: str) -> Timing:
    """One new token a sequence against a cache of ``length``, cut back to it after every step."""
    import torch

    cache = model(
        torch.randint(0, vocabulary, (sequences, length), device=device), use_cache=True
    ).past_key_values
    token = torch.randint(0, vocabulary, (sequences, 1), device=device)

    def step() -> None:
        model(token, past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return measure([step], device)
