"""Where the routed tokens of a scenario come from, and which of them one step sees."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.evidence import rng_for
from moesim.files import find
from moesim.model.spec import ModelSpec
from moesim.scenario.schema import RoutingSection
from moesim.traces import RoutingTrace, check_against, read_trace, repeat_layers
from moesim.traces.description import PHASES
from moesim.traces.generators import Generator, generators
from moesim.traces.rewrite import thinned

GENERATED_TOKENS = (4096, 8192)
"""Fewest and most tokens that a generator is asked for; a larger step meets them more than once."""


@dataclass(frozen=True)
class Traffic:
    """Routing of a scenario, cut into what a placement may look at and what it is judged on.

    Attributes
    ----------
    fit, held_out : RoutingTrace
        No request is in both.
    warnings : tuple of str
        What the reader should know about the source.
    files : tuple of Path
        What was read.
    """

    fit: RoutingTrace
    held_out: RoutingTrace
    warnings: tuple[str, ...]
    files: tuple[Path, ...] = ()


def load_traffic(
    section: RoutingSection, model: ModelSpec, step_tokens: int, seed: int, *, longer: int = 1
) -> Traffic:
    """Traffic for ``model``: a recorded trace, checked against it, or a generated one ``longer`` times over.

    Raises
    ------
    InputError
        Trace of another shape, hostile or truncated file, unknown generator or parameter.
    """
    layers = len(model.moe_layers)
    warnings: list[str] = []
    files: list[Path] = []
    if section.trace is not None:
        path = find(section.trace, "traces", field="routing.trace", suffixes=(".safetensors",))
        files.append(path)
        trace = read_trace(path)
        if section.repeat_layers and trace.num_layers < layers:
            warnings.append(
                f"the trace has {trace.num_layers} MoE layers, the model {layers}: they are repeated in order"
            )
            trace = repeat_layers(trace, layers)
        check_against(trace, num_experts=model.num_experts, num_layers=layers, top_k=model.top_k)
        if trace.info.model != model.name:
            warnings.append(f"routing was recorded from {trace.info.model}, not from {model.name}")
    else:
        assert section.generator is not None  # the schema demands one of the two
        generator = generators.build(section.generator, section.params, field="routing")
        wanted = longer * min(max(GENERATED_TOKENS[0], 2 * step_tokens), GENERATED_TOKENS[1])
        trace = _generated(generator, wanted, (layers, model.num_experts, model.top_k), seed)
        if model.mean_active_experts is not None:
            trace = thinned(trace, model.mean_active_experts, rng_for(seed, "routing/thinned"))
        warnings.append(f"routing is generated ({section.generator}), not recorded from {model.name}")
    fit, held_out = _split(trace, section.fit_fraction)
    if held_out.num_tokens < step_tokens:
        warnings.append(
            f"a step needs {step_tokens} tokens, held-out traffic has {held_out.num_tokens}: tokens repeat"
        )
    return Traffic(fit, held_out, tuple(warnings), tuple(files))


@lru_cache(maxsize=4)
def _generated(generator: Generator, num_tokens: int, shape: tuple[int, int, int], seed: int) -> RoutingTrace:
    """Generated trace of ``(layers, experts, top_k)``; variants of a scenario mostly ask for the same one."""
    return generator.generate(num_tokens, *shape, rng_for(seed, "routing/generator"))


def sample_tokens(
    trace: RoutingTrace, tokens_per_group: int, num_groups: int, phase: str, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Experts of one step's tokens, ``(token, layer, choice)``, group after group; -1 where empty.

    Decode draws rows of anywhere (unrelated requests meet in a batch), from decode rows where the
    trace has enough of them; prefill draws a run of consecutive rows for each group.
    """
    total = tokens_per_group * num_groups
    if phase == "decode":
        pool = np.flatnonzero(np.asarray(trace.phase) == PHASES.index("decode"))
        if len(pool) < total:
            pool = np.arange(trace.num_tokens)
        rows = rng.choice(pool, size=total, replace=len(pool) < total)
    else:
        starts = rng.integers(trace.num_tokens, size=num_groups)
        rows = (starts[:, None] + np.arange(tokens_per_group)).ravel() % trace.num_tokens
    ids = np.asarray(trace.expert_ids[rows]).astype(np.int64)
    return np.where(ids == trace.empty_slot, -1, ids)


def _split(trace: RoutingTrace, fit_fraction: float) -> tuple[RoutingTrace, RoutingTrace]:
    """By request; a trace of a single request is cut once."""
    if trace.num_requests > 1:
        return trace.split(fit_fraction)
    cut = round(trace.num_tokens * fit_fraction)
    if not 0 < cut < trace.num_tokens:
        message = f"{trace.num_tokens} tokens cannot be cut at {fit_fraction}"
        raise InputError([Problem("routing.fit_fraction", message)])
    return trace.window(0, cut), trace.window(cut, trace.num_tokens)
