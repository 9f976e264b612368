"""Parameters of the ``matched`` generator, and the choices they give.

Model: token ``t`` has a hidden context ``h[t]``; expert ``e`` of layer ``l`` likes contexts near its
own random direction ``u[l, e]``. The log-rate of the exponential race is ``bias[l, e] + strength *
u[l, e] . h``. Four measured things fix it:

- the load of every expert of every layer fixes ``bias``;
- mutual information of neighbouring layers fixes ``strength`` (and, where that does not suffice, the
  share of the context that layers have in common);
- repetition between tokens 1, 2, 3 ... 64 apart fixes the autocorrelation of ``h``, a mixture of
  first-order autoregressive processes from white noise to constant within a request;
- repetition between requests of one domain fixes the part of the context that is a domain's own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from moesim.errors import InputError, Problem
from moesim.files import write_text
from moesim.traces.arrays import fault
from moesim.traces.description import DECODE, PREFILL, TraceInfo, id_dtype
from moesim.traces.interchange import json_value
from moesim.traces.routing import ExpertIds, RoutingTrace
from moesim.traces.synthetic import CHUNK_VALUES, balanced_bias, check_shape, choose, inclusion_targets

Share = Annotated[float, Field(ge=0, le=1)]
PERSISTENCES = (0.0, 0.5, 0.75, 0.9, 0.97, 0.995, 1.0)
"""Autocorrelation from a token to the next of each part of the context; 1 is constant in a request."""
_PILOT_TOKENS = 768
_FEW_EXPERTS = 32
_PILOT_TOKENS_OF_FEW = 8192
"""A rank often holds one of few experts, whose error is imbalance: Mixtral's eight come out within 1.5 % of
their loads, 4.7 % with 768 tokens (root of mean squares over 56 layers, 32,768 tokens). [tokens]"""
BIAS_ROUNDS = 14
_LOG_RATE_MIN = -60.0
_LOAD_MIN = 0.001
_SUM_TOLERANCE = 0.01
_SPREAD_MIN = 0.01
_SAMPLES_PER_COLUMN = 4


@dataclass(frozen=True, slots=True)
class MatchedParameters:
    """What was measured on one trace; see the module for what each number fixes.

    Attributes
    ----------
    model : str
        Model the trace was recorded from.
    source : str
        Recording, its licence, and which part of it was fitted.
    top_k : int
        Choices a token of the recorded model. [-]
    layer_indices : tuple of int
        Its traced layers.
    relative_load : tuple of tuple of float, ``(layers, experts)``
        Load over mean load of every expert, in order of expert number. [-]
    context_size : int
        Dimensions of the hidden context. [-]
    context_strength : float
        Largest change of a log-rate per standard deviation of the context. [-]
    layer_sharing : float
        Share of the context's variance that layers have in common. [-]
    variance_shares : tuple of float
        Share of the context's variance of each of :data:`PERSISTENCES`. [-]
    domain_sharing : float
        Share of the part that is constant in a request which requests of one domain have in common. [-]
    num_domains : int
        Domains of the recording. [-]
    request_tokens : int
        Mean length of a request. [tokens]
    prefill_fraction : float
        Share of prefill tokens. [-]
    """

    model: str
    source: str
    top_k: Annotated[int, Field(ge=1, le=1000)]
    layer_indices: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    relative_load: Annotated[
        tuple[
            Annotated[tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...], Field(min_length=1)],
            ...,
        ],
        Field(min_length=1),
    ]
    context_size: Annotated[int, Field(ge=1, le=64)]
    context_strength: Annotated[float, Field(ge=0, le=16)]
    layer_sharing: Share
    variance_shares: Annotated[
        tuple[Share, ...], Field(min_length=len(PERSISTENCES), max_length=len(PERSISTENCES))
    ]
    domain_sharing: Share = 0.0
    num_domains: Annotated[int, Field(ge=1, le=255)] = 1
    request_tokens: Annotated[int, Field(ge=1, le=1_000_000)] = 256
    prefill_fraction: Share = 0.5

    def __post_init__(self) -> None:
        problems = []
        if len({len(row) for row in self.relative_load}) != 1:
            problems.append(Problem("relative_load", "layers of different length"))
        elif self.top_k > len(self.relative_load[0]) or not all(any(row) for row in self.relative_load):
            problems.append(
                Problem("relative_load", "accepted: at least top_k experts, some load in a layer")
            )
        if len(self.layer_indices) != len(self.relative_load):
            problems.append(Problem("layer_indices", f"accepted: {len(self.relative_load)} numbers"))
        if abs(sum(self.variance_shares) - 1.0) > _SUM_TOLERANCE:
            problems.append(Problem("variance_shares", "accepted: shares that sum to 1"))
        if problems:
            raise InputError(problems, source="matched parameters")

    @property
    def load(self) -> NDArray[np.float64]:
        """``relative_load`` as an array without exact zeros, ``(layers, experts)``. [-]"""
        return np.maximum(np.array(self.relative_load, np.float64), _LOAD_MIN)


def read_parameters(path: Path) -> MatchedParameters:
    """Fitted parameters of a JSON file.

    Raises
    ------
    InputError
        Not JSON, unknown or missing fields, values out of range.
    """
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

    tree = json_value(path)
    if not isinstance(tree, dict):
        raise fault(path, "is not a JSON object")
    tree = {name: value for name, value in tree.items() if name not in ("schema_version", "kind")}
    unknown = [n for n in tree if n not in MatchedParameters.__dataclass_fields__]
    if unknown:
        raise InputError([Problem(n[:80], "unknown field") for n in unknown], source=str(path))
    try:
        return TypeAdapter(MatchedParameters).validate_python(tree)
    except ValidationError as error:
        from moesim.files.check import problems_of  # noqa: PLC0415

        raise InputError(problems_of(error, prefix=""), source=str(path)) from None


def write_parameters(path: Path, parameters: MatchedParameters) -> Path:
    """Write fitted parameters as JSON, one line a layer; same parameters, same bytes."""
    tree: dict[str, Any] = {"schema_version": 1, "kind": "matched_routing", **asdict(parameters)}
    load = tree.pop("relative_load")
    lines = [f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in tree.items()]
    rows = ",\n".join("    " + json.dumps([round(v, 3) for v in row], separators=(",", ":")) for row in load)
    lines.append(f'  "relative_load": [\n{rows}\n  ]')
    return write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


def matched_trace(
    parameters: MatchedParameters,
    num_tokens: int,
    num_layers: int,
    num_experts: int,
    top_k: int,
    rng: np.random.Generator,
) -> RoutingTrace:
    """Trace of any shape with the measured behaviour.

    Of the recorded model's own shape, every expert has its own measured load. For another shape
    (an assumption) layers take the load of the layer at the same relative depth, and experts the
    same load curve by rank, in random order.
    """
    check_shape(num_tokens, num_layers, num_experts, top_k)
    targets = inclusion_targets(retargeted_load(parameters, num_layers, num_experts, rng), top_k)
    domain = np.arange(-(-num_tokens // parameters.request_tokens)) % parameters.num_domains
    ids = np.empty((num_tokens, num_layers, top_k), id_dtype(num_experts))
    shared = context(parameters, num_tokens, domain, rng)
    common = parameters.layer_sharing
    for layer in range(num_layers):
        seen = shared
        if common < 1:
            own = context(parameters, num_tokens, domain, rng)
            seen = np.float32(np.sqrt(common)) * shared + np.float32(np.sqrt(1 - common)) * own
        _choose_layer(parameters, targets[layer], seen, ids[:, layer], rng)
    own_shape = (num_layers, num_experts, top_k) == (*parameters.load.shape, parameters.top_k)
    return _as_trace(parameters, ids, num_experts, domain, own_shape=own_shape)


def retargeted_load(
    parameters: MatchedParameters, num_layers: int, num_experts: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Relative load for a shape, ``(num_layers, num_experts)``; the measured one for its own. [-]"""
    load = parameters.load
    layers, experts = load.shape
    if num_layers != layers:
        load = load[np.rint(np.linspace(0, layers - 1, num_layers)).astype(np.int64)]
    if num_experts == experts:
        return load if num_layers == layers else rng.permuted(load, axis=1)
    ranks = (np.arange(experts) + 0.5) / experts
    wanted = (np.arange(num_experts) + 0.5) / num_experts
    curves = np.log(-np.sort(-load, axis=1))
    stretched = np.exp([np.interp(wanted, ranks, curve) for curve in curves])
    return rng.permuted(stretched / stretched.mean(axis=1, keepdims=True), axis=1)


def context(
    parameters: MatchedParameters, num_tokens: int, domain: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """Contexts along requests of given domains, ``(tokens, context_size)``, of mean 0 and covariance 1.

    Mean and covariance hold exactly for what is drawn, not only in expectation: what was measured on a
    recording is of its own contexts, and a short trace would otherwise be off by the chance of few requests.
    """
    length, size = min(parameters.request_tokens, num_tokens), parameters.context_size
    # a stream of each part's own: a share that becomes 0 leaves the others as they were
    streams = rng.spawn(len(PERSISTENCES))
    used = [i for i, share in enumerate(parameters.variance_shares) if share > 0]
    parts = np.empty((length, domain.size, len(used), size), np.float32)
    for column, index in enumerate(used):
        if PERSISTENCES[index] == 1.0:
            parts[:, :, column] = _constant(parameters, domain, streams[index])
        else:
            parts[:, :, column] = _drifting(PERSISTENCES[index], (length, domain.size, size), streams[index])
    scales = np.sqrt([parameters.variance_shares[i] for i in used])
    total = _summed(parts.reshape(length * domain.size, -1), np.kron(scales[:, None], np.eye(size)))
    return total.reshape(length, domain.size, size).swapaxes(0, 1).reshape(-1, size)[:num_tokens]


def _constant(
    parameters: MatchedParameters, domain: NDArray[np.int64], rng: np.random.Generator
) -> NDArray[np.float32]:
    """The part that does not change in a request, ``(requests, context_size)``."""
    together, size = parameters.domain_sharing, parameters.context_size
    centre = rng.standard_normal((parameters.num_domains, size), dtype=np.float32)[domain]
    alone = rng.standard_normal((domain.size, size), dtype=np.float32)
    return np.float32(np.sqrt(together)) * centre + np.float32(np.sqrt(1 - together)) * alone


def _drifting(
    persistence: float, shape: tuple[int, int, int], rng: np.random.Generator
) -> NDArray[np.float32]:
    """First-order autoregressive values along the first axis."""
    part = rng.standard_normal(shape, dtype=np.float32)
    fresh = np.float32(np.sqrt(1.0 - persistence**2))
    for step in range(1, shape[0] if persistence > 0 else 0):
        part[step] = np.float32(persistence) * part[step - 1] + fresh * part[step]
    return part


def _summed(parts: NDArray[np.float32], mix: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Parts ``(samples, columns)`` moved and turned to mean 0 and covariance 1, times ``mix``.

    The turn is the smallest there is. Too few samples to tell the columns apart are left as they are.
    """
    parts -= parts.mean(axis=0)
    spread, axes = np.linalg.eigh((parts.T @ parts / len(parts)).astype(np.float64))
    if len(parts) >= _SAMPLES_PER_COLUMN * parts.shape[1] and spread[0] > _SPREAD_MIN:
        mix = (axes / np.sqrt(spread)) @ axes.T @ mix
    total: NDArray[np.float32] = parts @ mix.astype(np.float32)
    return total


def likings(parameters: MatchedParameters, num_experts: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Random directions of one layer's experts times the strength, ``(context_size, experts)``."""
    directions = rng.standard_normal((parameters.context_size, num_experts), dtype=np.float32)
    directions *= np.float32(parameters.context_strength) / np.linalg.norm(directions, axis=0)
    return directions


def rates_of(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Race rates of log-rates, written over them: only differences within a row matter, so none overflows."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.maximum(scores, np.float32(_LOG_RATE_MIN), out=scores)
    return np.exp(scores, out=scores)


def _choose_layer(
    parameters: MatchedParameters,
    targets: NDArray[np.float64],
    seen: NDArray[np.float32],
    out: ExpertIds,
    rng: np.random.Generator,
) -> None:
    """Choices of one layer written into ``out (tokens, top_k)``."""
    tokens, top_k = out.shape
    likes = likings(parameters, targets.size, rng)
    pilot = _PILOT_TOKENS_OF_FEW if targets.size < _FEW_EXPERTS else _PILOT_TOKENS
    bias = balanced_bias(targets, seen[:: -(-tokens // pilot)] @ likes, top_k, rates_of, BIAS_ROUNDS)
    chunk = max(1, CHUNK_VALUES // targets.size)
    for start in range(0, tokens, chunk):
        out[start : start + chunk] = choose(rates_of(seen[start : start + chunk] @ likes + bias), top_k, rng)


def _as_trace(
    parameters: MatchedParameters,
    ids: ExpertIds,
    num_experts: int,
    domain: NDArray[np.int64],
    *,
    own_shape: bool,
) -> RoutingTrace:
    tokens, layers, top_k = ids.shape
    length = parameters.request_tokens
    row = np.arange(tokens)
    position = (row % length).astype(np.int32)
    target = "" if own_shape else f"; re-targeted to {layers} layers, {num_experts} experts, top-{top_k}"
    info = TraceInfo(
        model=f"like {parameters.model}",
        num_experts=num_experts,
        layer_indices=parameters.layer_indices if own_shape else tuple(range(layers)),
        source=f"generator matched, fitted to {parameters.model} ({parameters.source}){target}",
        domains=tuple(f"domain_{i}" for i in range(parameters.num_domains)),
        evidence="assumed",
    )
    prompt = round(length * parameters.prefill_fraction)
    return RoutingTrace(
        info=info,
        expert_ids=ids,
        request_index=(row // length).astype(np.int32),
        position=position,
        step_index=position,
        phase=np.where(position < prompt, PREFILL, DECODE).astype(np.uint8),
        domain_index=domain[row // length].astype(np.uint8),
    )


def normalised(parameters: MatchedParameters, shares: NDArray[np.float64]) -> MatchedParameters:
    """Parameters with these variance shares, scaled to sum to 1."""
    total = float(shares.sum())
    whole = shares / total if total > 0 else np.eye(len(PERSISTENCES))[0]
    rounded = np.round(whole, 4)
    rounded[int(rounded.argmax())] += 1.0 - float(rounded.sum())
    return replace(parameters, variance_shares=tuple(float(v) for v in np.round(rounded, 4)))
