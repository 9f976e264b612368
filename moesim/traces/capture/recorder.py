"""Hooks that see what a torch model routes, one call a layer and forward pass.

Nothing is imported from torch: modules and tensors arrive from the model that is watched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError, Problem
from moesim.traces.capture.adapters import GENERIC, Point, adapters
from moesim.traces.description import id_dtype

EXPERT_COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass
class Recorder:
    """Choices of the routed blocks of a model.

    Attributes
    ----------
    points : dict of str to Point
        Where each block is read, by the block's full name, in order of layer.
    layer_indices : tuple of int
        Layer number in each name; never the order of calls.
    num_experts : int
        Routed experts; larger ids are choices that cost nothing and become empty slots.
    adapters : dict of str to str
        Adapter that reads each block.
    """

    points: Mapping[str, Point]
    layer_indices: tuple[int, ...]
    num_experts: int
    adapters: Mapping[str, str]
    _seen: dict[str, tuple[NDArray[np.int64], NDArray[np.float32] | None]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any, part: str = "") -> Recorder:
        """Recorder of every routed block of ``model``, or of those with ``part`` in their names.

        Raises
        ------
        InputError
            There is none, several in one layer (name a part), or no number of experts to be found.
        """
        found = _claimed(model)
        layers = {
            name: int(numbers[0])
            for name in found
            if part in name and (numbers := _NUMBER.findall(f"{name}."))
        }
        if not layers:
            parts = _parts(found)
            said = f" with {part!r} in its name; accepted: {', '.join(parts)}" if part and parts else ""
            message = f"no routed block in a numbered layer{said or '; accepted: a mixture-of-experts model'}"
            raise InputError([Problem("part" if said else "model", message)])
        names = sorted(layers, key=layers.__getitem__)
        indices = tuple(layers[name] for name in names)
        if len(set(indices)) != len(indices):
            message = f"several routed blocks in one layer; accepted: a part of {', '.join(_parts(names))}"
            raise InputError([Problem("part", message)])
        return cls(
            points={name: found[name][1] for name in names},
            layer_indices=indices,
            num_experts=_num_experts(model, names[0]),
            adapters={name: found[name][0] for name in names},
        )

    def attached(self) -> _Attached:
        """Context in which the hooks are in place."""
        return _Attached(self)

    def note(self, name: str, seen: Sequence[Any]) -> None:
        """Keep the choices that the call of one block shows."""
        if name in self._seen:
            raise InputError([Problem(name, "called twice in one forward pass; not supported")])
        ids, weights = self.points[name].read(seen)
        self._seen[name] = (
            ids.detach().cpu().numpy().astype(np.int64),
            None if weights is None else weights.detach().float().cpu().numpy().copy(),
        )

    def taken(self, requests: int, tokens: int) -> tuple[NDArray[Any], NDArray[np.float16] | None]:
        """Ids and weights of the last forward pass, ``(requests, tokens, layers, slots)``; forgets them.

        Layers with fewer slots than others have empty ones at the end; without weights None.
        """
        seen, self._seen = self._seen, {}
        absent = [n for n in self.points if n not in seen or len(seen[n][0]) != requests * tokens]
        if absent:
            message = f"did not see {requests * tokens} tokens in a forward pass"
            raise InputError([Problem(n, message) for n in absent[:4]], source="capture")
        slots = max(seen[n][0].shape[1] for n in self.points)
        shape = (requests * tokens, len(self.points), slots)
        kind = id_dtype(self.num_experts)
        ids = np.full(shape, np.iinfo(kind).max, kind)
        weights = np.zeros(shape, np.float16)
        with_weights = True
        for layer, name in enumerate(self.points):
            chosen, shares = seen[name]
            real = (chosen >= 0) & (chosen < self.num_experts)
            width = chosen.shape[1]
            ids[:, layer, :width] = np.where(real, chosen, np.iinfo(kind).max)
            with_weights &= shares is not None
            if shares is not None:
                weights[:, layer, :width] = np.where(real, shares, 0)
        batch = (requests, tokens, *shape[1:])
        return ids.reshape(batch), weights.reshape(batch) if with_weights else None


class _Attached:
    """Puts a recorder's hooks on and takes them off again."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.handles: list[Any] = []

    def __enter__(self) -> Recorder:
        for name, point in self.recorder.points.items():
            self.handles.append(self._hook(name, point))
        return self.recorder

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _hook(self, name: str, point: Point) -> Any:
        note = self.recorder.note
        if point.after:
            return point.module.register_forward_hook(lambda _module, _given, result: note(name, result))
        return point.module.register_forward_pre_hook(
            lambda _module, given, named: note(name, (*given, *named.values())), with_kwargs=True
        )


def _claimed(model: Any) -> dict[str, tuple[str, Point]]:
    """Adapter of every routed block by name, and where it reads; special adapters before the generic."""
    known = [
        (name, adapters.build(name)) for name in sorted(adapters.names(), key=lambda n: (n == GENERIC, n))
    ]
    found = {}
    for block_name, block in model.named_modules():
        for name, adapter in known:
            point = adapter.point(block)
            if point is not None:
                found[block_name] = name, point
                break
    # a block whose experts are a routed block themselves is only its frame
    return {name: pair for name, pair in found.items() if f"{name}.experts" not in found}


def _parts(names: Any) -> list[str]:
    """Names with ``*`` for numbers, each once."""
    return list(dict.fromkeys(_NUMBER.sub("*", f"{name}.").rstrip(".") for name in names))


def _num_experts(model: Any, block: str) -> int:
    """Routed experts, from the configuration or the block itself."""
    config = model.config
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    module = model.get_submodule(block)
    holders = [inner, getattr(inner, "ffn_config", None), module, *module.children()]
    for holder in holders:
        for key in EXPERT_COUNT_KEYS:
            value = getattr(holder, key, None)
            if isinstance(value, int) and value > 0:
                return value
    raise InputError(
        [Problem("model.config", f"no number of experts; accepted: {', '.join(EXPERT_COUNT_KEYS)}")]
    )
