"""Routing of a real model, read from what its experts are called with.

The only module that needs torch and transformers, and only inside its functions. Every module
whose name ends in ``experts`` is called with the router's choices, so a hook before that call sees
the true routing of bias-corrected, grouped and plain routers alike; choices are never recomputed
from router logits. Nothing is downloaded, unpickled or executed from the model's folder.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.traces.description import DECODE, PREFILL, TraceInfo
from moesim.traces.recorder import Recorder
from moesim.traces.routing import RoutingTrace

DTYPES = ("auto", "float32", "bfloat16", "float16")
INSTALL = "pip install moesim[capture]"
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Text:
    """A text and the kind it is counted under.

    Attributes
    ----------
    domain : str
        Name of the kind of text.
    content : str
        The text itself.
    """

    domain: str
    content: str


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """How much is captured, and how.

    Attributes
    ----------
    sequence_tokens : int
        Texts are cut into requests of this many tokens; a shorter rest is left out. [tokens]
    max_tokens : int or None
        Prefill tokens captured per text; None for all. [tokens]
    generate_tokens : int
        Tokens decoded after the prompt of each generating request. [tokens]
    generate_requests : int
        Requests per text, from its first on, that generate. [-]
    batch_requests : int
        Requests that run together. [-]
    temperature : float
        0 decodes greedily, otherwise samples. [-]
    seed : int
        For sampling.
    """

    sequence_tokens: int = 256
    max_tokens: int | None = None
    generate_tokens: int = 0
    generate_requests: int = 8
    batch_requests: int = 8
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        low = {"sequence_tokens": 1, "generate_tokens": 0, "generate_requests": 0, "batch_requests": 1}
        problems = [
            Problem(name, f"got {getattr(self, name)}; accepted: a whole number >= {least}")
            for name, least in low.items()
            if getattr(self, name) < least
        ]
        if self.max_tokens is not None and self.max_tokens < self.sequence_tokens:
            problems.append(
                Problem(
                    "max_tokens",
                    f"got {self.max_tokens}; accepted: >= sequence_tokens={self.sequence_tokens}",
                )
            )
        if self.temperature < 0:
            problems.append(Problem("temperature", f"got {self.temperature}; accepted: a number >= 0"))
        if problems:
            raise InputError(problems, source="capture")


def capture(  # noqa: PLR0913 - each is a separate fact about the recording
    model: Any,
    tokenizer: Any,
    texts: Sequence[Text],
    settings: CaptureSettings,
    *,
    name: str = "",
    source: str = "",
    date: str = "",
    progress: Progress | None = None,
) -> RoutingTrace:
    """Routing of ``model`` on ``texts``.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        Causal language model with modules named ``experts``, in evaluation mode.
    tokenizer : transformers.PreTrainedTokenizerBase
        Its tokenizer.
    texts : sequence of Text
        What is read; their domains become the trace's.
    settings : CaptureSettings
        How much, and how.
    name, source, date : str
        Description kept in the trace; nothing is read from a clock.
    progress : callable, optional
        Called with requests done and requests in all.

    Returns
    -------
    RoutingTrace
        One request per ``sequence_tokens`` of text, with gate weights.

    Raises
    ------
    InputError
        No expert modules, a router of unknown kind, or texts too short.
    """
    torch = _torch()
    prompts, domain_of, domains = _requests(tokenizer, texts, settings)
    recorder = Recorder.of(model)
    cache_name = _cache_name(model)
    generating = _generating(domain_of, len(domains), settings)
    groups = [
        *_batches(np.flatnonzero(generating), settings),
        *_batches(np.flatnonzero(~generating), settings),
    ]
    generator = torch.Generator().manual_seed(settings.seed)
    rows: dict[int, _Rows] = {}
    step = 0
    with torch.inference_mode(), recorder.attached():
        for group in groups:
            new_tokens = settings.generate_tokens if generating[group[0]] else 0
            inputs = torch.tensor(prompts[group], device=model.device)
            cache = None
            for index in range(new_tokens + 1):
                output = model(input_ids=inputs, use_cache=new_tokens > 0, **{cache_name: cache})
                ids, weights = recorder.taken(*inputs.shape)
                for place, request in enumerate(group):
                    record = rows.setdefault(int(request), _Rows())
                    record.add(ids[place], weights[place], PREFILL if index == 0 else DECODE, step)
                step += 1
                if index < new_tokens:
                    cache = output[cache_name]
                    inputs = _next_tokens(torch, output.logits[:, -1], settings.temperature, generator)
            if progress is not None:
                progress(len(rows), len(prompts))
    info = TraceInfo(
        model=name or str(getattr(model.config, "model_type", "model")),
        num_experts=recorder.num_experts,
        layer_indices=recorder.layer_indices,
        source=source,
        domains=domains,
        date=date,
    )
    return _assembled(info, [rows[i] for i in range(len(prompts))], domain_of)


def load_model(folder: Path, *, dtype: str = "auto", device: str = "cpu") -> tuple[Any, Any]:
    """Model and tokenizer of a local folder; safetensors only, no code from the folder.

    Parameters
    ----------
    folder : Path
        Holds ``config.json``, ``*.safetensors`` and a tokenizer.
    dtype : str
        ``auto`` for the type of the weights, or ``float32``, ``bfloat16``, ``float16``. Rounding
        may turn near ties of the router, so a trace is of the type it was captured with.
    device : str
        A torch device, ``cpu`` or ``cuda``.

    Raises
    ------
    InputError
        Not a folder with ``config.json``, no safetensors, or something transformers cannot load.
    """
    if dtype not in DTYPES:
        raise InputError.at("dtype", dtype, ", ".join(DTYPES))
    torch = _torch()
    try:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: PLC0415
    except ImportError:
        raise _missing("transformers") from None
    problems = [
        Problem("", f"no {what} in it; accepted: {accepted}", str(folder))
        for what, accepted in (
            ("config.json", "a Hugging Face model folder"),
            ("*.safetensors", "safetensors weights"),
        )
        if not any(folder.glob(what))
    ]
    if problems:
        raise InputError(problems, source="capture")
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), **local)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder), use_safetensors=True, dtype=dtype, **local
        ).to(torch.device(device))
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise InputError([Problem("", f"cannot be loaded: {_first_line(error)}", str(folder))]) from None
    return model.eval(), tokenizer


@dataclass
class _Rows:
    """Rows of one request as they come."""

    ids: list[NDArray[Any]] = field(default_factory=list)
    weights: list[NDArray[np.float16]] = field(default_factory=list)
    phase: list[int] = field(default_factory=list)
    step: list[int] = field(default_factory=list)

    def add(self, ids: NDArray[Any], weights: NDArray[np.float16], phase: int, step: int) -> None:
        self.ids.append(ids)
        self.weights.append(weights)
        self.phase += [phase] * len(ids)
        self.step += [step] * len(ids)


def _assembled(info: TraceInfo, rows: Sequence[_Rows], domain_of: NDArray[np.uint8]) -> RoutingTrace:
    lengths = np.array([len(r.phase) for r in rows])
    return RoutingTrace(
        info=info,
        expert_ids=np.concatenate([part for r in rows for part in r.ids]),
        gate_weights=np.concatenate([part for r in rows for part in r.weights]),
        request_index=np.repeat(np.arange(len(rows)), lengths).astype(np.int32),
        position=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        step_index=np.array([s for r in rows for s in r.step], np.int32),
        phase=np.array([p for r in rows for p in r.phase], np.uint8),
        domain_index=np.repeat(domain_of, lengths),
    )


def _requests(
    tokenizer: Any, texts: Sequence[Text], settings: CaptureSettings
) -> tuple[NDArray[np.int64], NDArray[np.uint8], tuple[str, ...]]:
    """Prompts ``(requests, sequence_tokens)``, all of one length so that nothing is padded."""
    domains = tuple(dict.fromkeys(text.domain for text in texts))
    length = settings.sequence_tokens
    prompts, domain_of = [], []
    for text in texts:
        ids = np.asarray(
            tokenizer(text.content, add_special_tokens=False, verbose=False)["input_ids"], np.int64
        )
        usable = len(ids) if settings.max_tokens is None else min(len(ids), settings.max_tokens)
        whole = usable // length
        if not whole:
            message = f"{len(ids)} tokens; accepted: at least sequence_tokens={length}"
            raise InputError([Problem(f"text {text.domain!r}", message)])
        prompts.append(ids[: whole * length].reshape(whole, length))
        domain_of += [domains.index(text.domain)] * whole
    if not prompts:
        raise InputError([Problem("texts", "none; accepted: at least one text")])
    return np.concatenate(prompts), np.array(domain_of, np.uint8), domains


def _generating(
    domain_of: NDArray[np.uint8], num_domains: int, settings: CaptureSettings
) -> NDArray[np.bool_]:
    """Which requests decode: the first few of each domain."""
    chosen = np.zeros(domain_of.size, np.bool_)
    if settings.generate_tokens:
        for domain in range(num_domains):
            chosen[np.flatnonzero(domain_of == domain)[: settings.generate_requests]] = True
    return chosen


def _batches(requests: NDArray[np.int64], settings: CaptureSettings) -> Iterator[NDArray[np.int64]]:
    for start in range(0, requests.size, settings.batch_requests):
        yield requests[start : start + settings.batch_requests]


def _next_tokens(torch: Any, logits: Any, temperature: float, generator: Any) -> Any:
    if temperature == 0.0:
        return logits.argmax(dim=-1, keepdim=True)
    shares = (logits.float() / temperature).softmax(dim=-1).cpu()
    return torch.multinomial(shares, 1, generator=generator).to(logits.device)


def _cache_name(model: Any) -> str:
    """What this version of transformers calls the key-value cache of a model."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _torch() -> Any:
    try:
        import torch  # noqa: PLC0415
    except ImportError:
        raise _missing("torch") from None
    return torch


def _missing(package: str) -> InputError:
    return InputError([Problem("capture", f"needs {package}, which is not installed; run: {INSTALL}")])


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
