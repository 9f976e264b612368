"""Refit every parameter file of this folder from the public recordings it came from.

Usage: python fit_all.py FOLDER, with the recordings repacked as ``.npz`` (``expert_ids``, ``seq_lens``,
``layer_ids``), counts as published; see README.md for where each one is from.
"""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from moesim.evidence import rng_for
from moesim.traces import read_trace
from moesim.traces.arrays import read_arrays
from moesim.traces.fit_matched import fit_matched
from moesim.traces.formats import formats
from moesim.traces.interchange import Hints, Request, build_trace
from moesim.traces.matched import PERSISTENCES, MatchedParameters, read_parameters, write_parameters
from moesim.traces.slices import merge

HERE = Path(__file__).parent
ESFT = "deepseek-ai/ESFT results/expert_scores at 579a7711, MIT code licence; "
GPT_OSS = "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting data at 72b368f6, Apache-2.0; "
FLAME = "CMU-FLAME/FLAME-MoE-Traces, Apache-2.0, extract in Akash-N-Pai/DynaNDE-Simulator at f274466b; "
OLMOE = "allenai/OLMoE scripts/routing_output/mistral/expert_counts at 357454f4, Apache-2.0; "
HEBREW = "sarelWeinberger/qwen-hebrew-finetuning cross_lang_moe_analysis/moe_csv_results at d82c8315, "
SLIMPAJAMA = {"c4": 0.789, "github": 0.085, "book": 0.042, "arxiv": 0.046, "wikipedia": 0.038}
"""SlimPajama's parts: CommonCrawl and C4 as c4, StackExchange beside GitHub. [-]"""
TALKS = "moe_all_layers_analysis_ted_he_en_chunks_20250925_161115_avg_activation.csv"
TALK_LAYERS = (0, 2, 3, 4, 5, 6, 24, 25, 26, 28, 43, 46, 47)
QUICK_MAX = 0.75
"""Largest persistence of the part of a context that changes within a sentence. [-]"""
TASKS = ("intent", "law", "summary", "translation")
SETS = (
    "gpqa_diamond",
    "gpqa_extended",
    "gpqa_main",
    "mmlu_dev",
    "mmlu_pro_test",
    "mmlu_pro_validation",
    "mmlu_test",
    "mmlu_validation",
    "sorry_bench_base",
)


def save(name, trace, model, source):
    found = fit_matched(trace, rng_for(0, "trace/fit_matched"), source=source)
    prefill = 0.0 if "decode" in source else found.prefill_fraction
    write_parameters(HERE / f"{name}.json", replace(found, model=model, prefill_fraction=prefill))
    print(name, found.context_size, found.context_strength, found.layer_sharing, found.variance_shares)


def group(folder, prefix, names, experts, domains):
    read = formats.build("npz").read
    traces = [read(folder / f"{prefix}_{n}.npz", Hints(num_experts=experts)) for n in names]
    return traces, merge(traces, domains=domains)


def save_loads(name, load, *, constant, strength, **fields):
    """Loads alone were recorded: how long routing repeats is that of deepseek_v2_lite, which is assumed.

    ``constant`` is the share of the context that a domain's texts have in common for good.
    """
    like = read_parameters(HERE / "deepseek_v2_lite.json")
    quick = [
        share if p <= QUICK_MAX else 0.0 for share, p in zip(like.variance_shares, PERSISTENCES, strict=True)
    ]
    shares = [share * (1.0 - constant) / sum(quick) for share in quick]
    shares[-1] = constant
    load = np.asarray(load) / np.mean(load, axis=1, keepdims=True)
    found = MatchedParameters(
        relative_load=tuple(map(tuple, load.tolist())),
        context_size=like.context_size,
        context_strength=strength,
        layer_sharing=like.layer_sharing,
        variance_shares=tuple(round(share, 4) for share in shares),
        domain_sharing=1.0,
        prefill_fraction=1.0,
        **fields,
    )
    write_parameters(HERE / f"{name}.json", found)
    print(name, "max over mean", load.max(axis=1).mean())


def save_mixtral(folder):
    """Counts by domain of layers 0, 7 and 15, which say nothing of depth: all 32 layers take theirs in turn.

    Strength and constant part give the spread of loads over domains, 0.084 of the mean.
    """
    counts = json.loads((folder / "olmoe_mixtral_domain_counts.json").read_text())["counts"]["mistral"]
    of = {name: np.array(rows, float) for name, rows in counts["expert_counts"].items()}
    shares = {name: rows / rows.sum(axis=1, keepdims=True) for name, rows in of.items()}
    recorded = sum(weight * shares[name] for name, weight in SLIMPAJAMA.items())
    save_loads(
        "mixtral_8x7b",
        recorded[np.arange(32) % len(recorded)],
        constant=0.005,
        strength=2.5,
        model="Mixtral-8x7B",
        source=f"{OLMOE}208,896 tokens each of c4, github, book, arxiv, wikipedia, as in SlimPajama; "
        "layers 0, 7 and 15 in turn for all; repetition over time assumed",
        top_k=2,
        layer_indices=tuple(range(32)),
        num_domains=len(SLIMPAJAMA),
        request_tokens=1062,
    )


def save_qwen(folder):
    """Shares of tokens that chose each expert, on one kind of text."""
    with (folder / TALKS).open(newline="") as file:
        rows = {int(row["Layer"]): row for row in csv.DictReader(file) if row["Language"] == "English"}
    save_loads(
        "qwen3_30b_a3b",
        [[float(rows[layer][f"Expert_{e}"]) for e in range(128)] for layer in TALK_LAYERS],
        constant=0.0,
        strength=read_parameters(HERE / "deepseek_v2_lite.json").context_strength,
        model="Qwen3-30B-A3B-Base",
        source=f"{HEBREW}licence of Qwen3; {TALKS}: some 138,700 tokens of English talks, 13 of 48 layers; "
        "repetition over time assumed",
        top_k=8,
        layer_indices=TALK_LAYERS,
        request_tokens=277,
    )


def main(folder):
    model = "ESFT-vanilla-lite (DeepSeek-V2-Lite shape)"
    parts, whole = group(folder, "esft_dsv2lite", TASKS, 64, TASKS)
    save("deepseek_v2_lite", whole, model, f"{ESFT}four tasks, 33,279 tokens, prefill")
    for task, part in zip(TASKS, parts, strict=True):
        save(
            f"deepseek_v2_lite_{task}", part, model, f"{ESFT}task {task}, {part.num_tokens:,} tokens, prefill"
        )
    parts, whole = group(folder, "gptoss20b", SETS, 32, SETS)
    said = f"nine data sets, {whole.num_tokens:,} generated tokens, greedy decode"
    save("gpt_oss_20b", whole, "gpt-oss-20b", GPT_OSS + said)
    for name, part in zip(SETS, parts, strict=True):
        said = f"{name}, {part.num_tokens:,} generated tokens, greedy decode"
        save(f"gpt_oss_20b_{name}", part, "gpt-oss-20b", GPT_OSS + said)
    path = folder / "flame_moe_290m_sample.npz"
    arrays = read_arrays(path)
    ids = arrays["prefill_expert_ids"].astype(np.int64)
    requests = [Request(rows) for rows in ids.reshape(32, 64, *ids.shape[1:])]
    trace = build_trace(requests, arrays["layer_ids"].tolist(), Hints(num_experts=64), path=path, said="")
    save("flame_moe_290m", trace, "FLAME-MoE-290M-1.3B", f"{FLAME}32 sequences of 64 prefill tokens")
    save_mixtral(folder)
    save_qwen(folder)
    bundled = read_trace(HERE.parent / "tiny_olmoe.safetensors")
    save("tiny_olmoe_matched", bundled, "tiny_olmoe", "the trace tiny_olmoe that is shipped with moesim")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
