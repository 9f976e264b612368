"""Reading a published ``config.json``: one name for what publishers call by many.

A wrong or missing value is noted and replaced by a harmless one, so that one pass finds every
problem; :meth:`ConfigFields.check` raises them together.
"""

from __future__ import annotations

from typing import Any

from moesim.errors import InputError, Problem
from moesim.files import Tree

ALIASES: dict[str, tuple[str, ...]] = {
    "num_layers": ("num_hidden_layers", "n_layers", "num_layers"),
    "hidden_size": ("hidden_size", "d_model"),
    "vocab_size": ("vocab_size",),
    "num_heads": ("num_attention_heads", "n_heads", "num_heads"),
    "num_kv_heads": ("num_key_value_heads", "kv_n_heads"),
    "head_dim": ("head_dim", "d_kv"),
    "width": ("intermediate_size", "ffn_hidden_size", "d_ff"),
    "dense_width": ("intermediate_size_mlp", "dense_intermediate_size"),
    "num_experts": ("n_routed_experts", "num_experts", "num_local_experts", "moe_num_experts"),
    "top_k": (
        "num_experts_per_tok",
        "top_k_experts",
        "experts_per_token",
        "num_experts_per_token",
        "moe_top_k",
    ),
    "expert_width": ("moe_intermediate_size", "expert_intermediate_size"),
    "num_shared_experts": ("n_shared_experts", "num_shared_experts"),
    "shared_width": (
        "moe_shared_expert_intermediate_size",
        "shared_expert_intermediate_size",
        "share_expert_dim",
    ),
    "latent_size": ("moe_latent_size",),
    "num_groups": ("n_group", "num_expert_group"),
    "top_k_groups": ("topk_group",),
    "num_mtp_layers": ("num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"),
    "window": ("sliding_window", "sliding_window_size"),
}
"""Our name to the keys seen in published files, the most specific first."""

COUNT_MAX = 10**9
LAYERS_MAX = 10_000


class ConfigFields:
    """Values of one configuration under our names.

    Parameters
    ----------
    tree : Tree
        File; a nested ``text_config`` is read instead of the top level where there is one, and
        ``attn_config`` and ``ffn_config`` (DBRX) are laid flat.
    """

    def __init__(self, tree: Tree) -> None:
        if not isinstance(tree.data, dict):
            raise InputError([Problem("", "a model configuration is a mapping of fields", tree.source)])
        self.tree = tree
        inner = tree.data.get("text_config")
        self.prefix: tuple[str, ...] = ("text_config",) if isinstance(inner, dict) else ()
        self.data: dict[str, Any] = dict(inner) if isinstance(inner, dict) else dict(tree.data)
        for part in ("attn_config", "ffn_config"):
            nested = self.data.get(part)
            if isinstance(nested, dict):
                self.data.update({k: v for k, v in nested.items() if k not in self.data})
        self.problems: list[Problem] = []

    @property
    def model_type(self) -> str:
        """``model_type`` of the language model, or of the whole file where it has none of its own."""
        return str(self.data.get("model_type") or self.tree.data.get("model_type") or "")

    def raw(self, key: str, default: Any = None) -> Any:
        """Value under its published key; null counts as absent."""
        value = self.data.get(key)
        return default if value is None else value

    def key_of(self, name: str) -> str | None:
        """Published key that holds our ``name``, if any."""
        return next((k for k in ALIASES.get(name, (name,)) if self.data.get(k) is not None), None)

    def has(self, name: str) -> bool:
        """Whether a value is present and not null."""
        return self.key_of(name) is not None

    def count(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """Whole number called ``name``; required unless there is a default."""
        key = self.key_of(name)
        if key is None:
            if default is not None:
                return default
            spellings = " or ".join(ALIASES.get(name, (name,)))
            self.problems.append(Problem(self._path(spellings), "missing (required)", self.tree.source))
            return 1
        value = self.data[key]
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= COUNT_MAX:
            self.note(key, value, f"a whole number from {least} to {COUNT_MAX}")
            return max(least, 1)
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Truth value under its published key."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            self.note(key, value, "true or false")
            return default
        return value

    def per_layer(
        self, key: str, num_layers: int, values: tuple[Any, ...], *, or_count: bool = False
    ) -> list[Any] | None:
        """List with one of ``values`` a layer; None when absent (or a plain number, if ``or_count``)."""
        found = self.raw(key)
        if found is None or (or_count and isinstance(found, int)):
            return None
        if not isinstance(found, list) or len(found) < num_layers:
            got = f"{len(found)} entries" if isinstance(found, list) else found
            self.note(key, got, f"a list with an entry for each of {num_layers} layers")
            return None
        strange = next((entry for entry in found[:num_layers] if entry not in values), None)
        if strange is not None:
            self.note(key, strange, f"one of {', '.join(map(str, values))} for each layer")
            return None
        return found[:num_layers]

    def indices(self, key: str) -> set[int]:
        """Layer numbers listed under a published key; none by default."""
        found = self.raw(key, [])
        if not isinstance(found, list) or not all(type(index) is int for index in found):
            self.note(key, found, "a list of layer numbers")
            return set()
        return set(found)

    def note(self, key: str, got: object, accepted: str) -> None:
        """Remember a problem with one value."""
        where = self.tree.where((*self.prefix, key))
        self.problems.append(Problem(self._path(key), f"got {got!r}; accepted: {accepted}", where))

    def require(self, good: bool, key: str, got: object, accepted: str) -> None:
        """Note a problem unless ``good``."""
        if not good:
            self.note(key, got, accepted)

    def check(self) -> None:
        """Raise everything noted.

        Raises
        ------
        InputError
            If anything was missing or wrong.
        """
        if self.problems:
            raise InputError(dict.fromkeys(self.problems), source=self.tree.source)

    def _path(self, key: str) -> str:
        return ".".join((*self.prefix, key))


def layer_count(fields: ConfigFields, name: str, default: int | None = None) -> int:
    """Number of layers called ``name``, not more than :data:`LAYERS_MAX`."""
    number = fields.count(name, default)
    fields.require(number <= LAYERS_MAX, fields.key_of(name) or name, number, f"at most {LAYERS_MAX}")
    return min(number, LAYERS_MAX)


def expert_counts(fields: ConfigFields, default_top_k: int | None = None) -> tuple[int, int]:
    """Routed experts, and how many of them a token chooses."""
    num_experts, top_k = fields.count("num_experts"), fields.count("top_k", default_top_k)
    accepted = f"at most {num_experts} experts"
    fields.require(top_k <= num_experts, fields.key_of("top_k") or "top_k", top_k, accepted)
    return num_experts, top_k
