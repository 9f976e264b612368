"""Hooks that see what the expert modules of a torch model are called with.

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
from moesim.traces.description import id_dtype

EXPERT_COUNT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass
class Recorder:
    """What the expert modules of a model are called with, one call a layer and forward pass.

    Attributes
    ----------
    modules : dict of str to torch.nn.Module
        Expert modules by full name, in order of layer.
    layer_indices : tuple of int
        Layer number in each name; never the order of calls.
    num_experts : int
        Routed experts; larger ids are choices that cost nothing and become empty slots.
    """

    modules: Mapping[str, Any]
    layer_indices: tuple[int, ...]
    num_experts: int
    _seen: dict[str, tuple[NDArray[np.int64], NDArray[np.float32]]] = field(default_factory=dict)

    @classmethod
    def of(cls, model: Any) -> Recorder:
        """Recorder for every module of ``model`` whose last name part is ``experts``.

        Raises
        ------
        InputError
            There is none, two of one layer, or a configuration without number of experts.
        """
        found = {n: m for n, m in model.named_modules() if n.rpartition(".")[2] == "experts"}
        layers = {n: int(digits[0]) for n in found if (digits := re.findall(r"(?<=\.)\d+(?=\.)", n))}
        if not found or len(layers) != len(found):
            message = "no module named 'layers.<number>...experts'; accepted: a mixture-of-experts model"
            raise InputError([Problem("model", message)])
        names = sorted(found, key=layers.__getitem__)
        indices = tuple(layers[n] for n in names)
        if len(set(indices)) != len(indices):
            message = (
                f"several expert modules of one layer ({', '.join(names[:4])}...); accepted: one a layer"
            )
            raise InputError([Problem("model", message)])
        return cls({n: found[n] for n in names}, indices, _num_experts(model.config))

    def attached(self) -> _Attached:
        """Context in which the hooks are in place."""
        return _Attached(self)

    def note(self, name: str, arguments: Sequence[Any]) -> None:
        """Keep the choices and weights that one expert module was called with."""
        if len(arguments) < 3 or arguments[1].ndim != 2 or arguments[1].is_floating_point():
            message = "experts are not called with (hidden, indices, weights); this router is not supported"
            raise InputError([Problem(name, message)])
        if name in self._seen:
            raise InputError([Problem(name, "called twice in one forward pass; not supported")])
        indices, weights = arguments[1], arguments[2]
        self._seen[name] = (indices.cpu().numpy().copy(), weights.detach().float().cpu().numpy().copy())

    def taken(self, requests: int, tokens: int) -> tuple[NDArray[Any], NDArray[np.float16]]:
        """Ids and weights of the last forward pass, ``(requests, tokens, layers, slots)``; forgets them."""
        seen, self._seen = self._seen, {}
        absent = [n for n in self.modules if n not in seen or len(seen[n][0]) != requests * tokens]
        if absent:
            message = f"did not see {requests * tokens} tokens in a forward pass"
            raise InputError([Problem(n, message) for n in absent[:4]], source="capture")
        ids = np.stack([seen[n][0] for n in self.modules], axis=1)
        weights = np.stack([seen[n][1] for n in self.modules], axis=1)
        kind = id_dtype(self.num_experts)
        free = (ids < 0) | (ids >= self.num_experts)
        ids = np.where(free, np.iinfo(kind).max, ids).astype(kind)
        shape = (requests, tokens, *ids.shape[1:])
        return ids.reshape(shape), np.where(free, 0, weights).astype(np.float16).reshape(shape)


class _Attached:
    """Puts a recorder's hooks on and takes them off again."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.handles: list[Any] = []

    def __enter__(self) -> Recorder:
        for name, module in self.recorder.modules.items():
            self.handles.append(
                module.register_forward_pre_hook(
                    lambda _module, arguments, name=name: self.recorder.note(name, arguments)
                )
            )
        return self.recorder

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def _num_experts(config: Any) -> int:
    inner = config.get_text_config() if hasattr(config, "get_text_config") else config
    for key in EXPERT_COUNT_KEYS:
        value = getattr(inner, key, None)
        if isinstance(value, int) and value > 0:
            return value
    raise InputError(
        [Problem("model.config", f"no number of experts; accepted: {', '.join(EXPERT_COUNT_KEYS)}")]
    )
