"""A real MoE model whose experts lie on disk or in host memory and are loaded on demand.

Runs greedy decoding of a small OLMoE-shaped checkpoint with an LRU cache of experts on the device, and
times its parts apart beforehand. The result is what a simulation has to reach: the same hits, and the
time of the whole run from the times of the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import OrderedDict
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

PARTS = ("gate_proj", "up_proj", "down_proj")
RUNS = 12


class Experts:
    """Expert weights: a file that is read in pieces, or host tensors, behind an LRU cache on the device."""

    def __init__(self, file: Path, config: dict[str, Any], device: str, tier: str, slots: int) -> None:
        import torch
        from safetensors.torch import load_file

        self.torch, self.device, self.tier, self.slots = torch, device, tier, slots
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        self.places = {
            name: (8 + length + entry["data_offsets"][0], entry["data_offsets"], entry["shape"])
            for name, entry in header.items()
            if name != "__metadata__"
        }
        self.stream = os.open(file, os.O_RDONLY)
        # reading ahead would bring in experts that nobody asked for
        os.posix_fadvise(self.stream, 0, 0, os.POSIX_FADV_RANDOM)
        os.posix_fadvise(self.stream, 0, 0, os.POSIX_FADV_DONTNEED)
        stacked = load_file(file) if tier == "host" else {}
        self.host = {name: tensor for name, tensor in stacked.items() if ".experts." in name}
        self.cache: OrderedDict[tuple[int, int], list[Any]] = OrderedDict()
        self.hits = self.loads = 0
        self.config = config

    def get(self, layer: int, expert: int, wanted: set[int]) -> list[Any]:
        """Weights on the device; the least recently used one that this token does not need goes."""
        key = (layer, expert)
        if key in self.cache:
            self.hits += 1
            self.cache.move_to_end(key)
            return self.cache[key]
        self.loads += 1
        mine = [k for k in self.cache if k[0] == layer]
        if len(mine) >= self.slots:
            victim = next(k for k in mine if k[1] not in wanted)
            del self.cache[victim]
        self.cache[key] = self.load(layer, expert)
        return self.cache[key]

    def counts(self) -> dict[str, Any]:
        """Set-up and what happened."""
        return {
            "tier": self.tier,
            "slots_per_layer": self.slots,
            "num_experts": self.config["num_experts"],
            "num_layers": self.config["num_hidden_layers"],
            "hits": self.hits,
            "loads": self.loads,
        }

    def load(self, layer: int, expert: int) -> list[Any]:
        """One expert from its tier."""
        torch = self.torch
        found = []
        for part in PARTS:
            name = f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
            if self.tier == "host":
                tensor = self.host[name]
            else:
                start, (begin, end), shape = self.places[name]
                raw = bytearray(os.pread(self.stream, end - begin, start))
                # the next read of this expert has to come from the disk again
                os.posix_fadvise(self.stream, start, end - begin, os.POSIX_FADV_DONTNEED)
                tensor = torch.frombuffer(raw, dtype=torch.bfloat16).view(shape)
            found.append(tensor.to(self.device, torch.float32))
        return found


class Model:
    """Forward pass of one token with a cache of keys and values."""

    def __init__(self, folder: Path, device: str, tier: str, slots: int) -> None:
        import torch
        from safetensors.torch import load_file

        self.torch = torch
        self.config = json.loads((folder / "config.json").read_text())
        self.device = device
        file = folder / "model.safetensors"
        self.experts = Experts(file, self.config, device, tier, slots)
        self.w = {
            name: tensor.to(device, torch.float32)
            for name, tensor in load_file(file).items()
            if ".experts." not in name
        }
        self.keys: list[Any] = [None] * self.config["num_hidden_layers"]
        self.values: list[Any] = [None] * self.config["num_hidden_layers"]

    def norm(self, x: Any, name: str) -> Any:
        """Root mean square norm."""
        scale = self.torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config["rms_norm_eps"])
        return x * scale * self.w[name]

    def mixer(self, x: Any, layer: int) -> Any:
        """Attention with rotary positions; the token joins the cache."""
        torch, heads = self.torch, self.config["num_attention_heads"]
        prefix = f"model.layers.{layer}.self_attn"
        h = self.norm(x, f"model.layers.{layer}.input_layernorm.weight")
        q = self.norm(h @ self.w[f"{prefix}.q_proj.weight"].T, f"{prefix}.q_norm.weight")
        k = self.norm(h @ self.w[f"{prefix}.k_proj.weight"].T, f"{prefix}.k_norm.weight")
        v = h @ self.w[f"{prefix}.v_proj.weight"].T
        past = 0 if self.keys[layer] is None else self.keys[layer].shape[1]
        q, k = (self.rotated(t.view(heads, 1, -1), past) for t in (q, k))
        v = v.view(heads, 1, -1)
        if past:
            k = torch.cat((self.keys[layer], k), 1)
            v = torch.cat((self.values[layer], v), 1)
        self.keys[layer], self.values[layer] = k, v
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v).reshape(1, -1)
        return x + out @ self.w[f"{prefix}.o_proj.weight"].T

    def rotated(self, t: Any, position: int) -> Any:
        """Rotary embedding of one position."""
        torch = self.torch
        half = t.shape[-1] // 2
        theta = self.config.get("rope_parameters", {}).get("rope_theta", 10000.0)
        frequency = theta ** (-torch.arange(half, device=t.device) / half) * position
        cos, sin = frequency.cos(), frequency.sin()
        a, b = t[..., :half], t[..., half:]
        return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)

    def gate(self, x: Any, layer: int) -> tuple[Any, list[float], list[int]]:
        """Normed input, weights and experts of a token."""
        h = self.norm(x, f"model.layers.{layer}.post_attention_layernorm.weight")
        scores = (h @ self.w[f"model.layers.{layer}.mlp.gate.weight"].T).softmax(-1)
        weight, chosen = scores.topk(self.config["num_experts_per_tok"])
        if self.config["norm_topk_prob"]:
            weight = weight / weight.sum()
        return h, weight[0].tolist(), chosen[0].tolist()

    def expert(self, h: Any, weights: list[Any]) -> Any:
        """One expert of one token."""
        silu = self.torch.nn.functional.silu
        return (silu(h @ weights[0].T) * (h @ weights[1].T)) @ weights[2].T

    def token(self, token: int, route: list[list[int]] | None) -> int:
        """Next token; the experts used are added to ``route``."""
        x = self.w["model.embed_tokens.weight"][token].view(1, -1)
        for layer in range(self.config["num_hidden_layers"]):
            x = self.mixer(x, layer)
            h, weights, chosen = self.gate(x, layer)
            for share, expert in zip(weights, chosen, strict=True):
                x = x + share * self.expert(h, self.experts.get(layer, expert, set(chosen)))
            if route is not None:
                route.append(chosen)
        return self.head(x)

    def head(self, x: Any) -> int:
        """Most likely token."""
        logits = self.norm(x, "model.norm.weight") @ self.w["model.embed_tokens.weight"].T
        return int(logits.argmax())


def decoded(model: Model, tokens: int, wait: Any) -> tuple[list[float], list[list[int]]]:
    """Time of every token, and the experts used in every layer of every token."""
    times: list[float] = []
    route: list[list[int]] = []
    token = 1
    for _ in range(tokens):
        wait()
        begin = perf_counter()
        token = (7 * model.token(token, route) + 1) % model.config["vocab_size"]
        wait()
        times.append(perf_counter() - begin)
    return times, route


class Parts:
    """Times of the parts of a token, taken in the order in which a token needs them.

    A load after a pause, or a product after a load, costs more than many of the same in a row.
    """

    def __init__(self, model: Model, context: int, wait: Any) -> None:
        import torch

        self.model, self.wait = model, wait
        self.times: dict[str, list[float]] = {
            name: [] for name in ("before_s", "expert_s", "load_s", "head_s")
        }
        layers, experts = model.config["num_hidden_layers"], model.config["num_experts"]
        for step in range(context):
            model.token(step % 64, None)
        self.x = torch.randn(1, model.config["hidden_size"], device=model.device)
        self.held = [[model.experts.load(layer, e) for e in range(0, experts, 4)] for layer in range(layers)]
        # a cycle longer than the cache: no load of it is ever a hit
        self.turns = [cycle(torch.randperm(experts).tolist()) for _ in range(layers)]
        for layer, turn in enumerate(self.turns):  # what earlier readers left in the page cache is dropped
            for expert in islice(turn, experts):
                model.experts.load(layer, expert)

    def timed(self, name: str, action: Any) -> Any:
        """Result of an action that is finished on the device; its time is kept."""
        self.wait()
        begin = perf_counter()
        result = action()
        self.wait()
        self.times[name].append(perf_counter() - begin)
        return result

    def token(self) -> None:
        """A token of which every other expert is loaded and the rest are at hand."""
        model, x = self.model, self.x
        for layer, (held, turn) in enumerate(zip(self.held, self.turns, strict=True)):
            self.timed("before_s", partial(self.before, layer))
            for place in range(model.config["num_experts_per_tok"]):
                weights = held[place % len(held)]
                if place % 2:
                    expert = next(turn)
                    weights = self.timed("load_s", partial(model.experts.get, layer, expert, {expert}))
                self.timed("expert_s", lambda weights=weights: x + 0.5 * model.expert(x, weights))
        self.timed("head_s", partial(model.head, x))

    def before(self, layer: int) -> None:
        """Attention and gate; the length of the context stays."""
        model = self.model
        model.gate(model.mixer(self.x, layer), layer)
        model.keys[layer], model.values[layer] = (t[:, :-1] for t in (model.keys[layer], model.values[layer]))

    def means(self) -> dict[str, float]:
        """Mean seconds by part: means add up, as quantiles would not."""
        return {name: sum(times) / len(times) for name, times in self.times.items()}


def measure(folder: Path, *, device: str, tier: str, slots: int, tokens: int) -> dict[str, Any]:
    """Times of the parts, then hits and time of a whole run."""
    import torch

    torch.set_grad_enabled(False)
    # small products: a second thread costs more than it brings, and waits for other programs
    torch.set_num_threads(1)
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    parts = Parts(Model(folder, device, tier, slots), tokens // 2, wait)
    skip = max(1, tokens // 8)
    token_times: list[float] = []
    # parts and runs in turn: how busy other programs keep the machine changes within minutes
    for _ in range(RUNS):
        for _ in range(tokens):
            parts.token()
        model = Model(folder, device, tier, slots)
        times, route = decoded(model, tokens, wait)
        token_times += times[skip:]
    layers = model.config["num_hidden_layers"]
    return {
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": folder.parent.name,
        "tokens": tokens,
        "skipped_tokens": skip,
        "parts": parts.means(),
        "token_s": sum(token_times) / len(token_times),
        "expert_ids": [route[t * layers : (t + 1) * layers] for t in range(tokens)],
    } | model.experts.counts()


def main(arguments: list[str] | None = None) -> None:
    """Parse, measure, write one JSON file."""
    parser = argparse.ArgumentParser(prog="harness.offload", description="Time a model with experts away.")
    parser.add_argument(
        "--model", type=Path, required=True, help="folder of config.json and model.safetensors"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--tier", choices=["disk", "host"], nargs="+", default=["disk", "host"])
    parser.add_argument("--tokens", type=int, default=256)
    given = parser.parse_args(arguments)
    rows = [
        measure(given.model, device=given.device, tier=tier, slots=slots, tokens=given.tokens)
        for tier in given.tier
        for slots in given.slots
    ]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"schema_version": 1, "runs": rows}, separators=(",", ":")) + "\n")
    sys.stdout.write(f"{given.out}\n")


if __name__ == "__main__":
    main()
