"""What is captured and how much: values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moesim.errors import InputError, Problem
from moesim.evidence import Grade


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
class Subject:
    """A model that is watched, and what reads text for it.

    Attributes
    ----------
    model : transformers.PreTrainedModel
        Language model with routed blocks, in evaluation mode.
    tokenizer : callable
        ``tokenizer(text, add_special_tokens=False)["input_ids"]`` are token ids.
    name : str
        Kept in the trace.
    fingerprint : str
        Tells these weights from others, so that an interrupted capture goes on with the same ones.
    evidence : str
        ``measured`` for trained weights, ``assumed`` for random ones.
    """

    model: Any
    tokenizer: Any
    name: str
    fingerprint: str = ""
    evidence: Grade = "measured"


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
    weights : bool
        Keep gate weights, which triples the file.
    part : str
        Part of the names of the blocks that are watched, where a layer has several.
    """

    sequence_tokens: int = 256
    max_tokens: int | None = None
    generate_tokens: int = 0
    generate_requests: int = 8
    batch_requests: int = 8
    temperature: float = 0.0
    seed: int = 0
    weights: bool = True
    part: str = ""

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
        if not self.temperature >= 0:
            problems.append(Problem("temperature", f"got {self.temperature}; accepted: a number >= 0"))
        if problems:
            raise InputError(problems, source="capture")
