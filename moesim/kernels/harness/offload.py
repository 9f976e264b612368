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
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from time import perf_counter
from typing import Any

PARTS = ("gate_proj", "up_proj", "down_proj")
REPEATS = 300
RUNS = 12
LOADS_TOGETHER = 16


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

    def token(self, token: int, route: list[list[int]] | None, done: Any = None) -> int:
        """Next token; the experts used are added to ``route``, ``done`` is called after every layer."""
        x = self.w["model.embed_tokens.weight"][token].view(1, -1)
        for layer in range(self.config["num_hidden_layers"]):
            x = self.mixer(x, layer)
            h, weights, chosen = self.gate(x, layer)
            for share, expert in zip(weights, chosen, strict=True):
                x = x + share * self.expert(h, self.experts.get(layer, expert, set(chosen)))
            if route is not None:
                route.append(chosen)
            if done is not None:
                done()
        return self.head(x)

    def head(self, x: Any) -> int:
        """Most likely token."""
        logits = self.norm(x, "model.norm.weight") @ self.w["model.embed_tokens.weight"].T
        return int(logits.argmax())


def timed_s(action: Any, wait: Any, repeats: int) -> list[float]:
    """Times of an action, each finished on the device."""
    times = []
    for _ in range(repeats):
        wait()
        begin = perf_counter()
        action()
        wait()
        times.append(perf_counter() - begin)
    return times


def quiet(times: Sequence[float]) -> float:
    """Lower quartile: other programs only ever add."""
    return sorted(times)[len(times) // 4]


def decoded(model: Model, tokens: int, wait: Any) -> tuple[list[float], list[list[int]], Model]:
    """Times between the ends of layers (and heads), experts used, and the model afterwards."""
    marks: list[float] = []
    route: list[list[int]] = []

    def done() -> None:
        wait()
        marks.append(perf_counter())

    token = 1
    done()
    for _ in range(tokens):
        token = (7 * model.token(token, route, done) + 1) % model.config["vocab_size"]
        done()
    return [b - a for a, b in zip(marks, marks[1:], strict=False)], route, model


def parts_of(probe: Model, tokens: int) -> dict[str, tuple[Any, int, int]]:
    """Actions of a run, how often each is timed, and how many of it together."""
    import torch

    layers, experts = probe.config["num_hidden_layers"], probe.config["num_experts"]
    for step in range(tokens // 2):  # the cache of keys and values of half the run
        probe.token(step % 64, None)
    x = torch.randn(1, probe.config["hidden_size"], device=probe.device)
    held = [probe.experts.load(layer, expert) for layer in range(layers) for expert in range(0, experts, 4)]
    order = torch.randperm(layers * experts).tolist()
    # the parts meet other weights every time, as in a run
    turn, layer_of, weights_of = cycle(order), cycle(range(layers)), cycle(held)

    for number in order:  # whatever earlier readers left in the page cache is dropped
        probe.experts.load(number // experts, number % experts)

    def load() -> None:
        # several at a time: reads of a disk differ, and a token waits for their sum; through the cache, which
        # looks up, evicts and frees as in a run, and which this order never hits
        for number in islice(turn, LOADS_TOGETHER):
            probe.experts.get(number // experts, number % experts, {number % experts})

    def before() -> None:
        layer = next(layer_of)
        probe.gate(probe.mixer(x, layer), layer)
        probe.keys[layer], probe.values[layer] = (t[:, :-1] for t in (probe.keys[layer], probe.values[layer]))

    return {
        "before_s": (before, REPEATS, 1),
        "expert_s": (lambda: x + 0.5 * probe.expert(x, next(weights_of)), REPEATS, 1),
        "load_s": (load, 4 * RUNS, LOADS_TOGETHER),
        "head_s": (lambda: probe.head(x), REPEATS, 1),
    }


def measure(folder: Path, *, device: str, tier: str, slots: int, tokens: int) -> dict[str, Any]:
    """Times of the parts, then hits and time of a whole run."""
    import torch

    torch.set_grad_enabled(False)
    # small products: a second thread costs more than it brings, and waits for other programs
    torch.set_num_threads(1)
    wait = torch.cuda.synchronize if device.startswith("cuda") else (lambda: None)
    probe = Model(folder, device, tier, slots)
    actions, layers = parts_of(probe, tokens), probe.config["num_hidden_layers"]
    skip = max(1, tokens // 8)
    # parts and runs in turn: how busy other programs keep the machine changes within minutes
    times: dict[str, list[float]] = {name: [] for name in actions}
    runs = []
    for _ in range(RUNS):
        for name, (action, repeats, _) in actions.items():
            times[name] += timed_s(action, wait, repeats // RUNS)
        runs.append(decoded(Model(folder, device, tier, slots), tokens, wait))
    parts = {name: quiet(times[name]) / together for name, (_, _, together) in actions.items()}
    route, model = runs[0][1], runs[0][2]
    # other programs take the processor away now and then: each layer of each token counts by its quiet runs
    pieces = [quiet(times) for times in zip(*(run[0] for run in runs), strict=True)]
    per_token = layers + 1
    token_s = sum(pieces[skip * per_token :]) / (tokens - skip)
    return {
        "device": device if device == "cpu" else torch.cuda.get_device_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "model": folder.parent.name,
        "tokens": tokens,
        "skipped_tokens": skip,
        "parts": parts,
        "token_s": token_s,
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
