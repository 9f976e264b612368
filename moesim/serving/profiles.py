"""Engine profiles: what an inference engine does by default, by name and version, as data.

A profile file (``engines/NAME.yaml``) holds the habits of an engine and, below ``versions``, what differs
from a release on. A version that the file does not reach is answered by the nearest family, and says so.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from moesim.errors import InputError, Problem, did_you_mean
from moesim.files import Tree, find, listed, read_tree, validated
from moesim.serving.drafting import Drafting

ROOM = "engines"
NEWEST = "newest"
"""Version of a deployment whose command or scenario names none."""

UNKNOWN_VERSION_SIGMA = 0.12
"""Assumed: what a release or two move a step, beside what is known of the nearest family (ln)."""


DEFAULT_ACCEPTANCE = 0.62
"""Fitted: acceptance of a draft in public runs of DeepSeek-R1 with three drafts."""
NEVER_RANKS = 2**31
"""More ranks than any stage has."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Host(_Strict):
    """What the host adds, beside the device.

    Attributes
    ----------
    iteration_s, sequence_s : float
        Exposed time of every iteration, and of each sequence in it. [s]
    eager_layer_s : float
        Launching one layer where no captured graph covers the iteration: hidden while the device is
        slower. [s]
    request_s, request_token_s : float
        From a client's request to the scheduler and back: once, and for each prompt token. [s]
    delivery_iterations : float
        Iterations that pass before a made token is on its way to the client: batches in flight, output
        handled beside the next ones. Delays the first token, not the pace. [-]
    """

    iteration_s: float = Field(ge=0)
    sequence_s: float = Field(ge=0)
    eager_layer_s: float = Field(ge=0)
    request_s: float = Field(ge=0)
    request_token_s: float = Field(ge=0)
    delivery_iterations: float = Field(0.0, ge=0)


class Speculation(_Strict):
    """Multi-token prediction with the model's own layers, where it has any.

    Attributes
    ----------
    draft_tokens, draft_tokens_attention_dp : int
        Drafts of a step, without and with attention data parallelism; 0: not used. [tokens]
    acceptance : float
        Chance that a draft is right, given that those before it were: mean over requests. [-]
    acceptance_spread : float
        Standard deviation of that chance over requests. [-]
    """

    draft_tokens: int = Field(0, ge=0)
    draft_tokens_attention_dp: int = Field(0, ge=0)
    acceptance: float = Field(0.0, ge=0, le=1)
    acceptance_spread: float = Field(0.0, ge=0)

    def drafts(self, attention_dp: int) -> int:
        """Drafts of a step under a plan. [tokens]"""
        return self.draft_tokens_attention_dp if attention_dp > 1 else self.draft_tokens

    def drafting(self, drafts: int) -> Drafting:
        """A step with so many drafts."""
        return Drafting(drafts, self.acceptance, self.acceptance_spread)


class OverlapFrom(_Strict):
    """Least new tokens of every rank from which an iteration is cut into parts that overlap.

    Attributes
    ----------
    decode_tokens, prefill_tokens : int
        Of iterations without and with prompts. [tokens]
    """

    decode_tokens: int = Field(2, ge=2)
    prefill_tokens: int = Field(2, ge=2)


class OneLaunch(_Strict):
    """Tiles of an attention kernel that takes prompts and decodes of an iteration in one launch.

    Attributes
    ----------
    rows : int
        Query rows of a tile. [-]
    per_unit : int
        Tiles at work on a multiprocessor at a time. [-]
    empty_s : float
        A tile without work, on its multiprocessor. [s]
    full, filled : float
        A decode step alone is cut into pieces along its caches where its tiles are fewer than ``full`` of
        two a multiprocessor: into the fewest that use ``filled`` of what any number would use. [-]
    """

    rows: int = Field(gt=0)
    per_unit: int = Field(gt=0)
    empty_s: float = Field(ge=0)
    full: float = Field(gt=0)
    filled: float = Field(gt=0, le=1)


class Kernels(_Strict):
    """Which kernels run, as names of calibration fits.

    Attributes
    ----------
    fits : str
        Engine of the fit files.
    chosen : dict
        ``{device or "*": {"family/dtype": kernel source}}`` where another kernel than the fit file's runs.
    inputs : dict
        ``{device or "*": {"family/dtype": dtype}}``: the kernel that answers, by its datatype name.
    fuses_quantisation : bool
        Inputs with static scales are quantised by the kernel before.
    shared_experts : str
        ``serial``; ``parallel``: beside the routed experts while a captured graph runs; ``fused``: one more
        routed expert.
    all_to_all_from : int
        Ranks of a stage from which tokens of attention data-parallel ranks go to their experts only; fewer
        gather everything. [-]
    one_launch : dict
        ``{kernel source: tiles}`` of attention kernels that take prompts and decodes together.
    small_kernel_s : float
        Launch to end of an element-wise kernel that moves next to nothing, inside a graph. [s]
    """

    fits: str
    chosen: dict[str, dict[str, str]] = Field(default_factory=dict)
    inputs: dict[str, dict[str, str]] = Field(default_factory=dict)
    fuses_quantisation: bool = False
    shared_experts: Literal["serial", "parallel", "fused"] = "serial"
    all_to_all_from: int = Field(9, ge=1)
    one_launch: dict[str, OneLaunch] = Field(default_factory=dict)
    small_kernel_s: float = Field(gt=0)


class Profile(_Strict):
    """Habits of one engine in one family of versions.

    Attributes
    ----------
    engine, version, family : str
        What was asked for, and the first version of the family that answers.
    is_exact : bool
        Whether the version lies in the range that the file knows.
    batching : str
        Registered batching policy.
    chunked_prefill, async_scheduling, reserve_whole : bool
        As in :class:`moesim.serving.engine.Engine`.
    max_num_batched_tokens, max_num_seqs, block_tokens : int
        Defaults of an iteration and of the cache. [tokens], [-], [tokens]
    memory_fraction : float
        Share of the device's memory that weights and cache may fill. [-]
    graph_batches : tuple of int
        Decode batches that have a captured graph; a smaller batch is padded to the next. [-]
    overlap_from : OverlapFrom
        From how many tokens an overlap policy cuts an iteration.
    kv_dtype : dict
        ``{weight format: cache format}``; ``*`` for the others.
    sigma, first_token_sigma : float
        Spread of ln(true / predicted) that remains within a family, of a step and of a first token. [-]
    """

    engine: str
    version: str
    family: str
    is_exact: bool
    batching: str
    chunked_prefill: bool
    async_scheduling: bool
    reserve_whole: bool
    max_num_batched_tokens: int = Field(gt=0)
    max_num_seqs: int = Field(gt=0)
    block_tokens: int = Field(gt=0)
    memory_fraction: float = Field(gt=0, le=1)
    graph_batches: tuple[int, ...] = Field(min_length=1)
    kv_dtype: dict[str, str]
    kernels: Kernels
    host: Host
    speculation: Speculation = Speculation()
    overlap_from: OverlapFrom = OverlapFrom()
    sigma: float = Field(ge=0)
    first_token_sigma: float = Field(0.4, ge=0)

    @property
    def stand_in(self) -> str:
        """That the profile stands in for a release that is not described, in words; empty for one that is."""
        if self.is_exact:
            return ""
        unnamed = {NEWEST: "newest version, as none is named,", "": "unknown version"}
        asked = unnamed.get(self.version, f"version {self.version}")
        return f"{asked} of {self.engine}: profile of the family from {self.family}, bands widened"

    @property
    def step_sigma(self) -> float:
        """Spread of a step: of the family, wider where only a neighbour of the version is known. [-]"""
        return self.sigma if self.is_exact else (self.sigma**2 + UNKNOWN_VERSION_SIGMA**2) ** 0.5

    def with_exchanges(
        self, all_to_all: bool | None, decode_tokens: int | None, prefill_tokens: int | None
    ) -> dict[str, object]:
        """Fields for other ways to exchange tokens and thresholds of their overlap; None leaves one alone."""
        changes: dict[str, object] = {}
        if all_to_all is not None:
            changes["kernels"] = self.kernels.model_copy(
                update={"all_to_all_from": 1 if all_to_all else NEVER_RANKS}
            )
        given = {"decode_tokens": decode_tokens, "prefill_tokens": prefill_tokens}
        least = {name: value for name, value in given.items() if value is not None}
        if least:
            changes["overlap_from"] = self.overlap_from.model_copy(update=least)
        return changes

    def kv_for(self, weights: str) -> str:
        """Cache format beside weights of a format."""
        return self.kv_dtype.get(weights, self.kv_dtype["*"])


class _File(_Strict):
    """``engines/NAME.yaml``."""

    schema_version: Literal[1]
    name: str
    aliases: tuple[str, ...] = ()
    undated: str
    last: str
    renumbered: dict[str, str] = Field(default_factory=dict)
    defaults: dict[str, Any]
    versions: dict[str, dict[str, Any]] = Field(default_factory=dict)
    sources: dict[str, str]


def engine_names() -> list[str]:
    """Engines that have a profile, sorted."""
    return [name for name in listed(ROOM, suffixes=(".yaml",)) if name != "checkpoints"]


def load_profile(engine: str, version: str = "", *, where: str = "") -> Profile:
    """Profile of an engine.

    Parameters
    ----------
    engine : str
        Name of a profile, in any spelling of its aliases.
    version : str
        Release; :data:`NEWEST` for the last one described; empty for a measurement of unknown date: the file
        says what is then taken.
    where : str
        What an error points at.

    Raises
    ------
    InputError
        Unknown engine, or a broken file.
    """
    name = engine.lower().replace("-", "").replace("_", "")
    for known in engine_names():
        if name in {known, *_file(known).aliases}:
            return _profile(known, version)
    hint = did_you_mean(name, engine_names())
    accepted = f"one of {', '.join(engine_names())}{hint}"
    raise InputError([Problem("engine", f"got {engine!r}; accepted: {accepted}", where)])


@lru_cache
def _profile(name: str, version: str) -> Profile:
    file = _file(name)
    own = file.last if version == NEWEST else _own_number(file, version)
    asked = release_order(own or file.undated)
    starts = sorted(file.versions, key=release_order)
    reached = [start for start in starts if release_order(start) <= asked]
    values: dict[str, Any] = file.defaults
    for start in reached:
        values = _laid_over(values, file.versions[start])
    is_exact = (
        bool(own) and version != NEWEST and bool(reached or not starts) and asked <= release_order(file.last)
    )
    head = {"engine": name, "version": version, "family": (reached or ["first"])[-1], "is_exact": is_exact}
    tree = read_tree(find(name, ROOM, suffixes=(".yaml",)))
    return validated(Profile, Tree(head | values, tree.positions, tree.source))


@lru_cache
def _file(name: str) -> _File:
    return validated(_File, read_tree(find(name, ROOM, suffixes=(".yaml",))))


def _own_number(file: _File, version: str) -> str:
    """The engine's own release for a version of a distribution that holds it; empty without any number."""
    for prefix, own in file.renumbered.items():
        if version.startswith(prefix):
            return own
    return version if re.search(r"\d", version) else ""


def _laid_over(base: dict[str, Any], upper: dict[str, Any]) -> dict[str, Any]:
    """Mappings merged key by key; anything else of ``upper`` replaces that of ``base``."""
    result = dict(base)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _laid_over(result[key], value) if both else value
    return result


def release_order(version: str) -> tuple[tuple[int, int, int], ...]:
    """Sort key of a release name: ``1.2.0rc2 < 1.2.0rc6.post3 < 1.2.0``, ``0.9 < 0.10``."""
    rank = {"dev": 0, "rc": 1, "": 2, "post": 3, "pre": 0}
    # a candidate comes before its release: a bare number follows at the end of every name
    parts = re.findall(r"([a-z]*)[.\-_]?(\d+)", version.lower().lstrip("v"))
    keys = [(rank.get(word, 2), int(number), 0) for word, number in parts]
    numbers = [key for key in keys if key[0] == 2]
    padded = numbers + [(2, 0, 0)] * (3 - len(numbers))
    suffix = [key for key in keys if key[0] != 2] or [(2, 0, 0)]
    return (*padded, *suffix)
