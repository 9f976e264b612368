"""Train a small sparse mixture-of-experts language model (OLMoE architecture) on one CPU.

The learning rate warms up, stays flat, and decays linearly once ``DECAY_FROM`` of the minutes are
used; the decay lasts a third of the steps made by then. Checkpoints are safetensors only, so a run
that was stopped goes on with ``--resume`` from the last one (same data order, weights and moments)::

    python train.py --corpus /tmp/tiny_olmoe_corpus --out /tmp/tiny_olmoe_run --minutes 45
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import OlmoeConfig, OlmoeForCausalLM

KINDS = ("prose", "python", "c", "markup")
SEQUENCE = 256
BATCH = 16
BALANCE_COEFFICIENT = 0.01  # on the mean over layers of E * sum_e f_e p_e, which is 1 when balanced
Z_COEFFICIENT = 0.001
PEAK_RATE = 3e-3
WARMUP_STEPS = 100
DECAY_FROM = 0.74
EVALUATE_EVERY = 100
SEED = 1


def build() -> OlmoeForCausalLM:
    torch.manual_seed(SEED)
    config = OlmoeConfig(
        vocab_size=2048,
        hidden_size=128,
        intermediate_size=48,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        num_experts=32,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        tie_word_embeddings=True,
        max_position_embeddings=1024,
        router_aux_loss_coef=BALANCE_COEFFICIENT,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=None,
        experts_implementation="grouped_mm",  # fastest of the three with backward on two cores
    )
    return OlmoeForCausalLM(config)


class RouterProbe:
    """Collects each router's logits and choices during a forward pass."""

    def __init__(self, model: OlmoeForCausalLM) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for layer in model.model.layers:
            layer.mlp.gate.register_forward_hook(lambda _m, _a, out: self.seen.append((out[0], out[2])))

    def losses(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Balance loss, z loss (means over layers), and counts ``(layers, experts)``; forgets them."""
        balance, z, counts = 0.0, 0.0, []
        for logits, chosen in self.seen:
            experts = logits.shape[-1]
            count = torch.bincount(chosen.flatten(), minlength=experts)
            counts.append(count)
            share = count / chosen.numel()
            balance = balance + experts * (share * logits.softmax(-1).mean(0)).sum()
            z = z + logits.logsumexp(-1).square().mean()
        n = len(self.seen)
        self.seen = []
        return balance / n, z / n, torch.stack(counts)


class Data:
    """Random windows of each kind, equal numbers of each; batch ``i`` depends on ``i`` only."""

    def __init__(self, corpus: Path, part: str) -> None:
        self.ids = {kind: np.load(corpus / f"{part}_{kind}.npy", mmap_mode="r") for kind in KINDS}

    def batch(self, number: int, kinds: tuple[str, ...] = KINDS) -> torch.Tensor:
        """Token ids ``(BATCH, SEQUENCE + 1)`` of batch ``number``, kinds in turn."""
        rng = np.random.default_rng([SEED, number])
        rows = []
        for i in range(BATCH):
            ids = self.ids[kinds[i % len(kinds)]]
            at = int(rng.integers(0, len(ids) - SEQUENCE - 1))
            rows.append(ids[at : at + SEQUENCE + 1].astype(np.int64))
        return torch.from_numpy(np.stack(rows))


def token_loss(model: OlmoeForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: OlmoeForCausalLM, probe: RouterProbe, heldout: Data, batches: int) -> dict[str, float]:
    model.eval()
    result = {}
    for kind in KINDS:
        losses = [float(token_loss(model, heldout.batch(i, (kind,)))) for i in range(batches)]
        result[kind] = sum(losses) / len(losses)
    probe.seen = []
    model.train()
    return result


def rate_at(step: int, decay_start: int | None) -> float:
    warm = min(1.0, (step + 1) / WARMUP_STEPS)
    if decay_start is None or step < decay_start:
        return PEAK_RATE * warm
    return PEAK_RATE * max(0.02, 1.0 - (step - decay_start) / (decay_start / 3))


def unigram_bounds(corpus: Path) -> dict[str, dict[str, float]]:
    """Nats a token of the best unigram models: one for all kinds, and one for each kind."""
    count = {k: np.bincount(np.load(corpus / f"train_{k}.npy"), minlength=2048) + 1.0 for k in KINDS}
    share = {k: c / c.sum() for k, c in count.items()}
    mixed = sum(share.values()) / len(KINDS)
    test = {k: np.bincount(np.load(corpus / f"heldout_{k}.npy"), minlength=2048) for k in KINDS}
    q = {k: c / c.sum() for k, c in test.items()}
    return {
        "unigram_all_kinds": {k: float(-(q[k] * np.log(mixed)).sum()) for k in KINDS},
        "unigram_own_kind": {k: float(-(q[k] * np.log(share[k])).sum()) for k in KINDS},
        "heldout_entropy": {k: float(-(q[k][q[k] > 0] * np.log(q[k][q[k] > 0])).sum()) for k in KINDS},
    }


def save_state(out: Path, model: OlmoeForCausalLM, optimizer: torch.optim.Optimizer, state: dict) -> None:
    tensors = {}
    for i, p in enumerate(p for p in model.parameters()):
        tensors[f"{i}.p"] = p.detach().contiguous()
        for name in ("exp_avg", "exp_avg_sq"):
            tensors[f"{i}.{name}"] = optimizer.state[p][name].contiguous()
    save_file(tensors, out / "state.tmp", metadata={"state": json.dumps(state)})
    (out / "state.tmp").replace(out / "state.safetensors")
    (out / "state.json").write_text(json.dumps(state))


def load_state(out: Path, model: OlmoeForCausalLM, optimizer: torch.optim.Optimizer) -> dict:
    tensors = load_file(out / "state.safetensors")
    state = json.loads((out / "state.json").read_text())
    for i, p in enumerate(model.parameters()):
        p.data.copy_(tensors[f"{i}.p"])
        optimizer.state[p] = {
            "step": torch.tensor(float(state["step"])),
            "exp_avg": tensors[f"{i}.exp_avg"],
            "exp_avg_sq": tensors[f"{i}.exp_avg_sq"],
        }
    return state


def export(out: Path, corpus: Path, model: OlmoeForCausalLM) -> None:
    folder = out / "checkpoint"
    model.to(torch.bfloat16).save_pretrained(folder)
    shutil.copy(corpus / "tokenizer.json", folder / "tokenizer.json")


class Threads:
    """Uses one or two threads, whichever was faster lately: two stall when a core is taken by others."""

    def __init__(self) -> None:
        self.speed = {1: 0.0, 2: 0.0}

    def count(self, step: int) -> int:
        """Threads for this step: tries both now and then."""
        if step % 40 < 4:
            return 1 + step % 40 // 2
        return max(self.speed, key=self.speed.__getitem__)

    def note(self, threads: int, seconds: float) -> None:
        """Remember how long a step took."""
        self.speed[threads] = 1.0 / seconds


def main() -> None:  # noqa: PLR0915
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=45.0)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--max-steps", type=int, default=10**9)
    options = parser.parse_args()
    threads = Threads()
    options.out.mkdir(parents=True, exist_ok=True)
    model = build()
    probe = RouterProbe(model)
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    plain = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=(0.9, 0.95), fused=True)
    state = {"step": 0, "spent_s": 0.0, "decay_start": None}
    if options.resume and (options.out / "state.safetensors").exists():
        state = load_state(options.out, model, optimizer)
    train, heldout = Data(options.corpus, "train"), Data(options.corpus, "heldout")
    bounds = unigram_bounds(options.corpus)
    print(sum(p.numel() for p in model.parameters()), "parameters", json.dumps(bounds), flush=True)
    log = options.out / "loss.csv"
    columns = [
        "step",
        "tokens",
        "learning_rate",
        "train",
        *(f"heldout_{k}" for k in KINDS),
        "balance",
        "gini",
    ]
    if state["step"] == 0:
        log.write_text(",".join(columns) + "\n")
    began, spent = time.monotonic(), state["spent_s"]
    recent: list[float] = []
    counts = torch.zeros(8, 32, dtype=torch.int64)
    while True:
        step = state["step"]
        elapsed = spent + time.monotonic() - began
        if state["decay_start"] is None and elapsed > DECAY_FROM * options.minutes * 60:
            state["decay_start"] = step
        finished = state["decay_start"] is not None and step >= state["decay_start"] * 4 // 3
        if (step % EVALUATE_EVERY == 0 and (recent or step == 0)) or finished:
            held = evaluate(model, probe, heldout, 16 if finished else 2)
            ordered = np.sort(counts.numpy(), axis=1)
            rank = 2 * np.arange(1, 33) - 33
            gini = float((ordered * rank).sum(1).mean() / max(1, counts.sum().item() / 8 * 32))
            row = [step, step * BATCH * SEQUENCE, rate_at(step, state["decay_start"])]
            row += [
                np.mean(recent) if recent else math.nan,
                *held.values(),
                state.get("balance", math.nan),
                gini,
            ]
            with log.open("a", newline="") as file:
                csv.writer(file).writerow([f"{v:.6g}" for v in row])
            print(
                f"{elapsed / 60:.1f} min",
                threads.speed,
                dict(zip(columns, (f"{v:.4g}" for v in row), strict=True)),
                flush=True,
            )
            recent, counts = [], torch.zeros_like(counts)
        if finished or step >= options.max_steps:
            break
        used = threads.count(step)
        torch.set_num_threads(used)
        step_began = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, state["decay_start"])
        loss = token_loss(model, train.batch(step))
        balance, z, count = probe.losses()
        (loss + BALANCE_COEFFICIENT * balance + Z_COEFFICIENT * z).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        threads.note(used, time.monotonic() - step_began)
        recent.append(float(loss.detach()))
        counts += count
        state["step"], state["balance"] = step + 1, float(balance.detach())
        if state["step"] % 200 == 0:
            state["spent_s"] = spent + time.monotonic() - began
            save_state(options.out, model, optimizer, state)
    record = {"steps": state["step"], "decay_start": state["decay_start"], "heldout": held, **bounds}
    (options.out / "training.json").write_text(json.dumps(record, indent=1) + "\n")
    export(options.out, options.corpus, model)


if __name__ == "__main__":
    main()
