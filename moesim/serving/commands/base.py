"""From the words of a launch command to named settings; what is not understood is kept and told."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from moesim.errors import InputError, Problem, did_you_mean
from moesim.registry import Registry
from moesim.serving.engine import Hold
from moesim.units import KB, KIB

Convert = Callable[[str], Any]

SERVER_FLAGS = frozenset(
    {
        *("--host", "--port", "--api-key", "--served-model-name", "--trust-remote-code", "--chat-template"),
        *("--tokenizer-mode", "--download-dir", "--load-format", "--revision", "--dtype"),
        *("--tool-call-parser", "--reasoning-parser", "--stream-interval"),
    }
)
"""Flags that vLLM and SGLang share and that change no time."""


@dataclass(frozen=True)
class Command:
    """Settings of a launch command that decide how fast it runs.

    Attributes
    ----------
    engine, model : str
        Profile name; model as written.
    tp, pp, data_parallel, attention_dp, ep : int
        Degrees; ``data_parallel`` counts whole replicas, ``ep`` is 1 where experts are sliced.
    weights, kv : str
        Format labels; empty where the command does not say.
    max_num_batched_tokens, max_num_seqs, block_tokens, num_blocks : int or None
        Limits; None: the engine's default.
    memory_fraction : float or None
    chunked_prefill, prefix_caching, async_scheduling : bool or None
        None: the engine's default.
    draft_tokens : int or None
        Drafts of multi-token prediction.
    overlap : str
        Overlap policy; empty without one.
    overlap_decode_tokens, overlap_prefill_tokens : int or None
        Tokens of a rank from which iterations without and with prompts are cut in parts. [tokens]
    hold : Hold or None
        When it looks at new requests; None: in every iteration.
    all_to_all : bool or None
        Whether tokens go to their experts only, however few the ranks; None: the engine's default.
    redundant_experts : int
        Copies of a layer beside one of each expert, over all ranks.
    rebalance_every, rebalance_window : int or None
        Iterations between two placements of experts, and those one is made from; None: they stay.
    without_effect : tuple of str
        Flags that are known and change no time here.
    unknown : tuple of str
        Flags that nothing is known of.
    """

    engine: str
    model: str
    tp: int = 1
    pp: int = 1
    data_parallel: int = 1
    attention_dp: int = 1
    ep: int = 1
    weights: str = ""
    kv: str = ""
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    block_tokens: int | None = None
    num_blocks: int | None = None
    memory_fraction: float | None = None
    chunked_prefill: bool | None = None
    prefix_caching: bool | None = None
    async_scheduling: bool | None = None
    draft_tokens: int | None = None
    overlap: str = ""
    overlap_decode_tokens: int | None = None
    overlap_prefill_tokens: int | None = None
    hold: Hold | None = None
    all_to_all: bool | None = None
    redundant_experts: int = 0
    rebalance_every: int | None = None
    rebalance_window: int | None = None
    without_effect: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    @property
    def num_devices(self) -> int:
        """Devices of all replicas. [-]"""
        return self.tp * self.pp * self.attention_dp * self.data_parallel


class Reader(Protocol):
    """Knows the launch command of one engine."""

    def matches(self, words: Sequence[str]) -> bool:
        """Whether the words start such a command."""
        ...

    def read(self, words: Sequence[str]) -> Command:
        """Settings of the command.

        Raises
        ------
        InputError
            Wrong values, every one of them.
        """
        ...


engine_commands: Registry[Reader] = Registry("launch command", "moesim.serving.commands")


def read_command(text: str) -> Command:
    """Settings of a launch command of any engine that is known.

    Raises
    ------
    InputError
        Not a command of a known engine, or wrong values.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise InputError([Problem("--from", f"not a command line: {error}")]) from None
    while words and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=.*", words[0]):
        words = words[1:]  # variables set for the command
    for _, kind in engine_commands.items():  # noqa: PERF102 - a registry, which has no values
        reader = kind()
        if reader.matches(words):
            return reader.read(words)
    accepted = "'vllm serve MODEL ...', 'python -m sglang.launch_server ...' or 'trtllm-serve MODEL ...'"
    raise InputError.at("--from", " ".join(words[:4]), accepted)


def whole(text: str) -> int:
    """A whole number, also as people write limits: ``8k``, ``16K``."""
    match = re.fullmatch(r"(\d+)([kK]?)", text)
    if match is None:
        message = "a whole number"
        raise ValueError(message)
    return int(match[1]) * {"": 1, "k": int(KB), "K": KIB}[match[2]]


def fraction(text: str) -> float:
    """A number in (0, 1]."""
    value = float(text)
    if not 0 < value <= 1:
        message = "a number in (0, 1]"
        raise ValueError(message)
    return value


def more_than(text: str) -> int:
    """The least whole number above a threshold."""
    return whole(text) + 1


def sends_to_experts(backend: str) -> bool:
    """Whether an exchange backend sends tokens to their experts only; the others gather everything."""
    if not backend:
        message = "the name of a backend"
        raise ValueError(message)
    return backend not in {"none", "naive", "allgather_reducescatter"}


def share(text: str) -> float:
    """A number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        message = "a number in [0, 1]"
        raise ValueError(message)
    return value


def switch(text: str) -> bool:
    """Yes or no, as YAML and JSON spell it."""
    if text.lower() not in {"true", "false"}:
        message = "true or false"
        raise ValueError(message)
    return text.lower() == "true"


def converted(field: str, value: object, convert: Convert, where: str = "--from") -> Any:
    """Setting of a file or an inline object.

    Raises
    ------
    InputError
        Not what ``convert`` takes.
    """
    try:
        return convert(str(value))
    except ValueError as error:
        raise InputError.at(field, value, str(error), where=where) from None


def mapping(text: str) -> Mapping[str, Any]:
    """A JSON object."""
    value = json.loads(text)
    if not isinstance(value, dict):
        message = "a JSON object"
        raise ValueError(message)  # noqa: TRY004 - told as a wrong value like the others
    return value


@dataclass(frozen=True)
class Flags:
    """Flags of an engine.

    Attributes
    ----------
    values : dict
        ``{flag: (setting, converter)}`` of flags that take a value.
    switches : dict
        ``{flag: (setting, value)}`` of flags that stand alone.
    without_effect : frozenset of str
        Flags that change no time; with their value, if one follows.
    """

    values: Mapping[str, tuple[str, Convert]]
    switches: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    without_effect: frozenset[str] = frozenset()

    def parse(self, words: Sequence[str]) -> Parsed:
        """Settings, positional words, and flags that do nothing or are not known.

        Raises
        ------
        InputError
            Every value that cannot be read.
        """
        parsed = Parsed()
        problems: list[Problem] = []
        at = 0
        while at < len(words):
            word, at = words[at], at + 1
            if not word.startswith("-"):
                parsed.positional.append(word)
                continue
            flag, given, value = word.partition("=")
            flag = _plain(flag)
            if flag in self.switches and not given:
                name, fixed = self.switches[flag]
                parsed.settings[name] = fixed
                continue
            if not given and at < len(words) and not _is_flag(words[at]):
                value, at = words[at], at + 1
            self._take(parsed, flag, value, problems)
        if problems:
            raise InputError(problems, source="--from")
        return parsed

    def _take(self, parsed: Parsed, flag: str, value: str, problems: list[Problem]) -> None:
        if flag in self.values:
            name, convert = self.values[flag]
            try:
                parsed.settings[name] = convert(value)
            except ValueError as error:
                problems.append(Problem(flag, f"got {value!r}; accepted: {error}"))
        elif flag in self.without_effect or flag in self.switches:
            parsed.without_effect.append(flag)
        else:
            near = did_you_mean(flag, (*self.values, *self.switches))
            parsed.unknown.append(f"{flag}{near}")


@dataclass
class Parsed:
    """What flags said."""

    settings: dict[str, Any] = field(default_factory=dict)
    positional: list[str] = field(default_factory=list)
    without_effect: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def _is_flag(word: str) -> bool:
    return word.startswith("-") and not re.fullmatch(r"-\d+(\.\d+)?", word)


def _plain(flag: str) -> str:
    """Long flags with hyphens, whatever the writer used."""
    return "--" + flag[2:].replace("_", "-") if flag.startswith("--") else flag
