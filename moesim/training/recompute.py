"""Which activations a training step forgets, and which forward work its backward pass runs again.

Modules carry the names that Megatron-Core gives them (``recompute_modules``, transformer_config.py), work the
tags of :func:`moesim.training.items.tag_of`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from moesim.errors import InputError, Problem, did_you_mean

Granularity = Literal["none", "selective", "full"]
Method = Literal["uniform", "block"]

MODULES: dict[str, frozenset[str]] = {
    "core_attn": frozenset({"core_attention"}),
    "mla_up_proj": frozenset({"mla_up_proj"}),
    "layernorm": frozenset({"norm"}),
    "moe_act": frozenset({"expert_activation"}),
    "mlp": frozenset({"dense_ffn"}),
    "shared_experts": frozenset({"shared_experts"}),
    "moe": frozenset(
        {
            "router",
            "permute",
            "dispatch",
            "experts",
            "expert_activation",
            "combine",
            "unpermute",
            "shared_experts",
        }
    ),
}
"""Tags of the work that each module of selective recomputation runs again."""

OUTSIDE_LAYERS = frozenset({"embedding", "head", "loss"})
"""Tags that no policy runs again."""

TAGS = frozenset().union(*MODULES.values(), {"attention"}, OUTSIDE_LAYERS)
"""Every tag that a policy can be asked about."""


@dataclass(frozen=True, slots=True)
class Recompute:
    """A policy.

    Attributes
    ----------
    granularity : str
        ``none``; ``selective``: the modules below; ``full``: whole layers, of which only inputs are kept.
    modules : tuple of str
        Of selective recomputation, named as in :data:`MODULES`.
    method : str
        Of full recomputation. ``uniform``: every layer, the input of each group of ``num_layers`` is kept;
        ``block``: the first ``num_layers`` layers of each chunk, the others keep everything.
    num_layers : int
        See ``method``. [-]
    """

    granularity: Granularity = "none"
    modules: tuple[str, ...] = ()
    method: Method = "uniform"
    num_layers: int = 1

    def __post_init__(self) -> None:
        problems = _problems(self)
        if problems:
            raise InputError(problems)

    def checkpointed(self, position: int) -> bool:
        """Whether the layer at ``position`` of its chunk keeps nothing but an input."""
        return self.granularity == "full" and (self.method == "uniform" or position < self.num_layers)

    def keeps_input(self, position: int) -> bool:
        """Whether the input of a checkpointed layer is kept: the first layer of each group."""
        return self.method == "block" or position % self.num_layers == 0

    @property
    def layers_at_once(self) -> int:
        """Layers that are run again together, from one kept input. [-]"""
        return self.num_layers if self.granularity == "full" and self.method == "uniform" else 1

    def reruns(self, tag: str, position: int = 0) -> bool:
        """Whether the backward pass of the layer at ``position`` of its chunk runs work of a tag again."""
        if self.granularity == "full":
            return tag not in OUTSIDE_LAYERS and self.checkpointed(position)
        return self.granularity == "selective" and any(tag in MODULES[name] for name in self.modules)

    def at(self, position: int) -> Callable[[str], bool]:
        """:meth:`reruns` of one layer of a chunk, as a function of the tag."""
        return lambda tag: self.reruns(tag, position)

    def drops(self, modules: frozenset[str]) -> bool:
        """Whether selective recomputation forgets a tensor that any of ``modules`` makes again."""
        return self.granularity == "selective" and not modules.isdisjoint(self.modules)

    def __str__(self) -> str:
        if self.granularity == "selective":
            return "+".join(self.modules) or "none"
        if self.granularity == "full":
            return f"full ({self.method}, {self.num_layers})"
        return "none"


def _problems(policy: Recompute) -> list[Problem]:
    problems = []
    for name, options in (("granularity", get_args(Granularity)), ("method", get_args(Method))):
        got = getattr(policy, name)
        if got not in options:
            accepted = f"one of {', '.join(options)}{did_you_mean(str(got), options)}"
            problems.append(Problem(f"recompute.{name}", f"got {got!r}; accepted: {accepted}"))
    for name in policy.modules:
        if name not in MODULES:
            accepted = f"some of {', '.join(MODULES)}{did_you_mean(name, MODULES)}"
            problems.append(Problem("recompute.modules", f"got {name!r}; accepted: {accepted}"))
    if policy.modules and policy.granularity != "selective":
        text = f"got {policy.granularity!r} with modules; accepted: 'selective'"
        problems.append(Problem("recompute.granularity", text))
    if policy.num_layers < 1:
        text = f"got {policy.num_layers}; accepted: a whole number >= 1"
        problems.append(Problem("recompute.num_layers", text))
    return problems
