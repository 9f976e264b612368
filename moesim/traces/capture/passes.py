"""Forward passes of a batch of requests, as each kind of model runs them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from moesim.errors import InputError
from moesim.traces.capture.recorder import Recorder
from moesim.traces.description import DECODE, PREFILL

Pick: TypeAlias = Callable[[Any], Any]
"""Next tokens ``(requests, 1)`` from logits ``(requests, vocabulary)``."""
Passes: TypeAlias = Callable[[Any, int, Pick], Iterator[tuple[int, int]]]
"""``passes(prompts, new_tokens, pick)``: runs the model; after each pass its tokens a request and phase."""


def passes_of(model: Any, recorder: Recorder, generate_tokens: int) -> Passes:
    """How the watched part of a model runs.

    A decoder reads the prompt, then decodes with a cache. The encoder of an encoder-decoder model only
    reads; its decoder starts from the start token after the encoder has read the prompt.

    Raises
    ------
    InputError
        Generation asked of an encoder, or none of the decoder behind one.
    """
    if not getattr(model.config, "is_encoder_decoder", False):
        return _Decoder(model).run
    if not only_generates(model, recorder):
        if generate_tokens:
            raise InputError.at("generate_tokens", generate_tokens, "0 for the encoder of a model")
        return _Encoder(model).run
    if not generate_tokens:
        raise InputError.at("generate_tokens", 0, ">= 1 for a decoder that reads from an encoder")
    return _EncoderDecoder(model).run


def only_generates(model: Any, recorder: Recorder) -> bool:
    """Whether the watched part sees no prompt: the decoder behind an encoder."""
    encoder = all(".encoder." in f".{name}" for name in recorder.points)
    return bool(getattr(model.config, "is_encoder_decoder", False)) and not encoder


def _cache_name(model: Any) -> str:
    """What this version of transformers calls the key-value cache of a model."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class _Decoder:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.cache_name = _cache_name(model)
        known = inspect.signature(model.forward).parameters
        # logits of a whole prompt would be the largest tensor of all
        self.more = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def run(self, prompts: Any, new_tokens: int, pick: Pick) -> Iterator[tuple[int, int]]:
        inputs, cache = prompts, None
        for index in range(new_tokens + 1):
            output = self.model(
                input_ids=inputs, use_cache=new_tokens > 0, **{self.cache_name: cache}, **self.more
            )
            yield inputs.shape[1], PREFILL if index == 0 else DECODE
            if index < new_tokens:
                cache = output[self.cache_name]
                inputs = pick(output.logits[:, -1])


class _Encoder:
    def __init__(self, model: Any) -> None:
        self.encoder = model.get_encoder()

    def run(self, prompts: Any, new_tokens: int, pick: Pick) -> Iterator[tuple[int, int]]:  # noqa: ARG002
        self.encoder(input_ids=prompts)
        yield prompts.shape[1], PREFILL


class _EncoderDecoder:
    def __init__(self, model: Any) -> None:
        self.model = model
        self.encoder = model.get_encoder()
        self.cache_name = _cache_name(model)

    def run(self, prompts: Any, new_tokens: int, pick: Pick) -> Iterator[tuple[int, int]]:
        read = self.encoder(input_ids=prompts)
        start = getattr(self.model.config, "decoder_start_token_id", None)
        inputs = prompts.new_full((len(prompts), 1), start or 0)
        cache = None
        for index in range(new_tokens):
            output = self.model(
                encoder_outputs=read, decoder_input_ids=inputs, use_cache=True, **{self.cache_name: cache}
            )
            yield 1, PREFILL if index == 0 else DECODE
            cache = output[self.cache_name]
            inputs = pick(output.logits[:, -1])
