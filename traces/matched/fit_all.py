"""Refit every parameter file of this folder from the public recordings it came from.

Usage: python fit_all.py FOLDER, with the recordings repacked as ``.npz`` (``expert_ids``, ``seq_lens``,
``layer_ids``); see README.md for where each one is published.
"""

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
from moesim.traces.matched import write_parameters
from moesim.traces.slices import merge

HERE = Path(__file__).parent
ESFT = "deepseek-ai/ESFT results/expert_scores at 579a7711, MIT code licence; "
GPT_OSS = "AmanPriyanshu/GPT-OSS-MoE-ExpertFingerprinting data at 72b368f6, Apache-2.0; "
FLAME = "CMU-FLAME/FLAME-MoE-Traces, Apache-2.0, extract in Akash-N-Pai/DynaNDE-Simulator at f274466b; "
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
    bundled = read_trace(HERE.parent / "tiny_olmoe.safetensors")
    save("tiny_olmoe_matched", bundled, "tiny_olmoe", "the trace tiny_olmoe that is shipped with moesim")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
