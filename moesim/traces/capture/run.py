"""Routing of a model on given text, written batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.evidence import rng_for
from moesim.traces.capture.models import import_torch
from moesim.traces.capture.passes import only_generates, passes_of
from moesim.traces.capture.recorder import Recorder
from moesim.traces.capture.settings import CaptureSettings, Subject, Text
from moesim.traces.capture.spool import Spool
from moesim.traces.description import TraceInfo
from moesim.traces.routing import RoutingTrace
from moesim.traces.store import read_trace

Progress: TypeAlias = Callable[[int, int], None]


def capture(
    subject: Subject,
    texts: Sequence[Text],
    settings: CaptureSettings,
    out: Path,
    *,
    source: str = "",
    date: str = "",
    progress: Progress | None = None,
    restart: bool = False,
) -> RoutingTrace:
    """Routing of a model on ``texts``, written to ``out`` with a manifest beside it.

    No more than one batch is held in memory. A capture that was interrupted goes on where it stopped.

    Parameters
    ----------
    subject : Subject
        Model and tokenizer.
    texts : sequence of Text
        What is read; their domains become the trace's.
    settings : CaptureSettings
        How much, and how.
    out : Path
        Trace file; ``OUT.partial`` beside it holds the batches until all are there.
    source, date : str
        Description kept in the trace; nothing is read from a clock.
    progress : callable, optional
        Called with requests done and requests in all.
    restart : bool
        Discard what an interrupted capture left.

    Returns
    -------
    RoutingTrace
        Memory-mapped; one request per ``sequence_tokens`` of text.

    Raises
    ------
    InputError
        No routed blocks, a router of unknown kind, texts too short, or another capture in progress.
    """
    torch = import_torch()
    prompts, domain_of, domains = _requests(subject.tokenizer, texts, settings)
    recorder = Recorder.of(subject.model, settings.part)
    passes = passes_of(subject.model, recorder, settings.generate_tokens)
    generating = _generating(domain_of, len(domains), settings)
    if only_generates(subject.model, recorder):
        prompts, domain_of, generating = prompts[generating], domain_of[generating], generating[generating]
    groups = [
        *_batches(np.flatnonzero(generating), settings),
        *_batches(np.flatnonzero(~generating), settings),
    ]
    info = TraceInfo(
        model=subject.name,
        num_experts=recorder.num_experts,
        layer_indices=recorder.layer_indices,
        source=source,
        domains=domains,
        date=date,
        evidence=subject.evidence,
    )
    manifest = _manifest(subject, texts, settings, info, recorder, len(prompts))
    spool = Spool(out, groups)
    step = done = 0
    ready = spool.open(manifest, restart=restart)
    with torch.inference_mode(), recorder.attached():
        for index, group in enumerate(groups):
            new_tokens = settings.generate_tokens if generating[group[0]] else 0
            if index >= ready:
                inputs = torch.tensor(prompts[group], device=subject.model.device)
                pick = _picker(torch, settings, index)
                spool.add(
                    index, _rows(recorder, passes(inputs, new_tokens, pick), len(group), step, settings)
                )
            step += new_tokens + 1
            done += len(group)
            if progress is not None:
                progress(done, len(prompts))
    spool.finish(info, domain_of, manifest)
    return read_trace(out, verify=False)


def _rows(
    recorder: Recorder,
    passes: Iterator[tuple[int, int]],
    requests: int,
    first_step: int,
    settings: CaptureSettings,
) -> dict[str, NDArray[Any]]:
    """Arrays of one batch; see :meth:`Spool.add`."""
    ids, weights, phases, steps = [], [], [], []
    for index, (tokens, phase) in enumerate(passes):
        chosen, shares = recorder.taken(requests, tokens)
        ids.append(chosen)
        weights.append(shares)
        phases += [phase] * tokens
        steps += [first_step + index] * tokens
    found: dict[str, NDArray[Any]] = {
        "expert_ids": np.concatenate(ids, axis=1),
        "phase": np.array(phases, np.uint8),
        "step_index": np.array(steps, np.int32),
    }
    kept = [shares for shares in weights if shares is not None]
    if settings.weights and len(kept) == len(weights):
        found["gate_weights"] = np.concatenate(kept, axis=1)
    return found


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


def _picker(torch: Any, settings: CaptureSettings, group: int) -> Callable[[Any], Any]:
    """How the next tokens are drawn in one batch; a batch draws the same whichever ran before it."""
    generator = torch.Generator().manual_seed(
        int(rng_for(settings.seed, f"trace/capture/{group}").integers(2**63))
    )

    def pick(logits: Any) -> Any:
        if settings.temperature == 0.0:
            return logits.argmax(dim=-1, keepdim=True)
        shares = (logits.float() / settings.temperature).softmax(dim=-1).cpu()
        return torch.multinomial(shares, 1, generator=generator).to(logits.device)

    return pick


def _manifest(
    subject: Subject,
    texts: Sequence[Text],
    settings: CaptureSettings,
    info: TraceInfo,
    recorder: Recorder,
    requests: int,
) -> dict[str, Any]:
    """All that a capture depends on, for its manifest."""
    import transformers  # noqa: PLC0415

    torch = import_torch()
    return {
        "schema_version": 1,
        "kind": "capture",
        "model": info.model,
        "model_class": type(subject.model).__name__,
        "weights": subject.fingerprint,
        "evidence": info.evidence,
        "source": info.source,
        "date": info.date,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "device": str(subject.model.device),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "settings": asdict(settings),
        "texts": [
            {"domain": t.domain, "sha256": hashlib.sha256(t.content.encode()).hexdigest()} for t in texts
        ],
        "num_experts": recorder.num_experts,
        "blocks": dict(recorder.adapters),
        "requests": requests,
    }
