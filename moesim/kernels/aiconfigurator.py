"""Measured kernel tables of the PyPI package ``aiconfigurator-core``, where a user has installed it.

Only read, never copied into the repository; fits made from it are. What its columns mean was read
from its own documentation and loader; defects of its rows are handled here and named in
``provenance``:

- rows of the DeepSeek-V3 expert shape measured through vLLM and SGLang had another routing than
  their label says (group-limited top-k over a synthetic score): left out;
- rows of decode with a window: some kernels still pay for the full history: left out;
- decode of head width 512 by FlashAttention 4 is irregular in the batch: left out;
- more than 32 query heads a key head run on fall-back kernels: left out;
- vLLM's block-scaled fp8 GEMM was timed with the host's launch: kept, fitted as such, never a default;
- a tenth of TensorRT-LLM's bf16 and fp8 expert rows are more than twice too slow (autotuner
  failures): kept, met by a robust loss, counted by the fit.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.evidence import rng_for
from moesim.kernels.forms.formats import attention_dtype
from moesim.kernels.histogram import TILE_ROWS, ExpertLoad
from moesim.kernels.measured import MeasuredTable
from moesim.units import MS

PACKAGE = "aiconfigurator_core"
INSTALL = "pip install 'moesim[tables]'"

SYSTEMS = {
    "a100_sxm_80": "a100_sxm",
    "h100_sxm": "h100_sxm",
    "h200_sxm": "h200_sxm",
    "b200_sxm": "b200_sxm",
    "b300_sxm": "b300_sxm",
    "gb200": "gb200",
    "gb300": "gb300",
    "l40s": "l40s",
    "rtx_pro_6000": "rtx_pro_6000_server",
}
"""Device profile -> folder of the package."""

DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "fp8": "fp8",
    "fp8_block": "fp8_block",
    "nvfp4": "nvfp4",
    "int8_wo": "int8",
    "sq": "int8_x_int8",
    "int4_wo": "int4",
    "w4a16_mxfp4": "mxfp4",
    "w4a8_mxfp4_mxfp8": "mxfp4_x_mxfp8",
    "w4afp8": "int4_x_fp8",
}
"""Datatype name of the package -> ours; rows of others are not read."""

LATENT_PREFILL = (192.0, 128.0)
LATENT_DECODE = (576.0, 512.0)
"""(query-key, value) widths of DeepSeek's latent attention, arXiv:2405.04434: expanded and absorbed."""

ENOUGH_OF_OLDER = 0.2
"""A newer release stands for a kernel if it has this fraction of the rows of the one before."""

MOST_GROUPED_HEADS = 32
POWER_LAW_DRAWS = 5
DEEPSEEK_V3 = {"hidden_size": 7168, "inter_size": 2048, "num_experts": 256, "topk": 8}
GROUPED_ROUTING = frozenset({"vllm", "sglang"})

Rows = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class _Source:
    """A file of the package: where, which family, how its rows become columns."""

    folder: str
    file: str
    family: str
    dtype: Callable[[Rows], NDArray[np.str_]]
    columns: Callable[[Rows], dict[str, NDArray[Any]]]
    kept: Callable[[Rows, str], NDArray[np.bool_]]


def read_tables(device: str, families: tuple[str, ...] = ()) -> list[MeasuredTable]:
    """Tables of a device, one for each kernel source and datatype, of the newest release that covers it.

    Parameters
    ----------
    device : str
        Name of a device profile in :data:`SYSTEMS`.
    families : tuple of str
        Only these; empty for all that are read.

    Raises
    ------
    InputError
        The package is not installed, or has nothing of this device.
    """
    if device not in SYSTEMS:
        raise InputError.at("device", device, f"one that {PACKAGE} has measured, {', '.join(SYSTEMS)}")
    root = data_folder() / SYSTEMS[device]
    tables: list[MeasuredTable] = []
    for source in SOURCES:
        if families and source.family not in families:
            continue
        best: dict[str, MeasuredTable] = {}
        for path in sorted((root / source.folder).glob(f"*/*/{source.file}"), key=_release):
            for table in _tables_of(path, source, device):
                known = best.get(table.name)
                if known is None or table.num_rows >= ENOUGH_OF_OLDER * known.num_rows:
                    best[table.name] = table
        tables += best.values()
    return tables


def _release(path: Path) -> tuple[str, list[int]]:
    """Order of releases: by framework, then by the numbers of the version."""
    return path.parts[-3], [int(number) for number in re.findall(r"\d+", path.parts[-2])]


def data_folder() -> Path:
    """Folder of the installed package that holds the tables.

    Raises
    ------
    InputError
        Not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise InputError.at("source", "aiconfigurator", f"after it is installed: {INSTALL}")
    return Path(next(iter(found.submodule_search_locations))) / "systems" / "data"


def package_version() -> str:
    """Version of the installed package."""
    from importlib.metadata import version  # noqa: PLC0415

    return version(PACKAGE.replace("_", "-"))


def _tables_of(path: Path, source: _Source, device: str) -> list[MeasuredTable]:
    import pyarrow.parquet  # noqa: PLC0415

    arrow = pyarrow.parquet.read_table(path)
    rows = {name: arrow[name].to_numpy() for name in arrow.column_names}
    backend, release = path.parts[-3], path.parts[-2]
    kept = source.kept(rows, backend) & (rows["latency"] > 0)
    dtypes, kernels = source.dtype(rows), _kernels(rows, source, backend)
    tables = []
    for dtype in np.unique(dtypes[kept]):
        for kernel in np.unique(kernels[kept & (dtypes == dtype)]):
            if not dtype:
                continue
            own = kept & (dtypes == dtype) & (kernels == kernel)
            some = {name: column[own] for name, column in rows.items()}
            provenance = {
                "package": f"{PACKAGE} {package_version()} (Apache-2.0)",
                "release": f"{backend} {release}",
                "gpu": str(rows["device"][0]),
                "rows_left_out": str(int((~kept & (dtypes == dtype) & (kernels == kernel)).sum())),
            }
            columns = {n: np.asarray(c, dtype=np.float64) for n, c in source.columns(some).items()}
            seconds = np.asarray(some["latency"], dtype=np.float64) * MS
            key = (source.family, device, f"{backend}/{kernel}", str(dtype))
            tables.append(MeasuredTable(*key, *_averaged(columns, seconds), provenance=provenance))
    return tables


def _averaged(
    columns: dict[str, NDArray[np.float64]], seconds: NDArray[np.float64]
) -> tuple[dict[str, NDArray[np.float64]], NDArray[np.float64]]:
    """One row a shape: the geometric mean of shapes that were measured more than once."""
    shapes = np.stack(list(columns.values()), axis=1)
    _, first, which = np.unique(shapes, axis=0, return_index=True, return_inverse=True)
    which = which.reshape(-1)
    mean = np.exp(np.bincount(which, np.log(seconds)) / np.bincount(which))
    return {name: column[first] for name, column in columns.items()}, mean


def _kernels(rows: Rows, source: _Source, backend: str) -> NDArray[np.str_]:
    """Kernel of each row: one name for a dispatch, one a head width for kernels that change with it."""
    kernels = np.asarray(rows["kernel_source"], dtype=str)
    if source.family == "gemm" and backend == "vllm":
        block = np.asarray(rows["gemm_dtype"], dtype=str) == "fp8_block"
        return np.where(block, "block_scaled_dispatch", kernels)
    if "head_dim" in rows:
        widths = np.asarray(rows["head_dim"]).astype(str)
        special = np.char.find(kernels, "triton") >= 0
        special |= np.char.find(kernels, "fa4") >= 0
        return np.where(special, np.char.add(np.char.add(kernels, "_hd"), widths), kernels)
    return kernels


def _named(column: NDArray[Any]) -> NDArray[np.str_]:
    return np.array([DTYPES.get(str(name), "") for name in column], dtype=str)


def _attention_dtypes(column: str) -> Callable[[Rows], NDArray[np.str_]]:
    def named(rows: Rows) -> NDArray[np.str_]:
        queries, cache = _named(rows[column]), _named(rows["kv_cache_dtype"])
        both = [attention_dtype(q, c) if q and c else "" for q, c in zip(queries, cache, strict=True)]
        return np.array(both, dtype=str)

    return named


def _gemm_columns(r: Rows) -> dict[str, NDArray[Any]]:
    return {"rows": r["m"], "n": r["n"], "k": r["k"], "count": np.ones(len(r["m"]))}


def _heads(r: Rows) -> dict[str, NDArray[Any]]:
    num_heads, kv = r["num_heads"], r["num_key_value_heads"]
    return {
        "num_heads": num_heads,
        "num_kv_heads": np.where(kv > 0, kv, num_heads),
        "qk_dim": r["head_dim"],
        "v_dim": r["head_dim"],
        "window": _window(r),
    }


def _window(r: Rows) -> NDArray[Any]:
    """Window of each row; older releases have no such column and measured none."""
    return r["window_size"] if "window_size" in r else np.zeros(len(r["latency"]))


def _latent(r: Rows, widths: tuple[float, float], kv_heads: NDArray[Any]) -> dict[str, NDArray[Any]]:
    ones = np.ones(len(kv_heads))
    return {
        "num_heads": r["num_heads"],
        "num_kv_heads": kv_heads,
        "qk_dim": widths[0] * ones,
        "v_dim": widths[1] * ones,
        "window": 0 * ones,
    }


def _prefill_columns(r: Rows) -> dict[str, NDArray[Any]]:
    return {
        "num_sequences": r["batch_size"],
        "query_tokens": r["isl"],
        "context_tokens": r["step"],
        **_heads(r),
    }


def _decode_columns(r: Rows) -> dict[str, NDArray[Any]]:
    return {"num_sequences": r["batch_size"], "context_tokens": r["step"], **_heads(r)}


def _latent_prefill_columns(r: Rows) -> dict[str, NDArray[Any]]:
    shape = {"num_sequences": r["batch_size"], "query_tokens": r["isl"], "context_tokens": r["step"]}
    return shape | _latent(r, LATENT_PREFILL, r["num_heads"])


def _latent_decode_columns(r: Rows) -> dict[str, NDArray[Any]]:
    shape = {"num_sequences": r["batch_size"], "context_tokens": r["step"]}
    return shape | _latent(r, LATENT_DECODE, np.ones(len(r["step"])))


def _all(rows: Rows, backend: str) -> NDArray[np.bool_]:
    del backend
    return np.ones(len(rows["latency"]), dtype=bool)


def _regular_prefill(rows: Rows, backend: str) -> NDArray[np.bool_]:
    del backend
    return _few_grouped(rows)


def _regular_decode(rows: Rows, backend: str) -> NDArray[np.bool_]:
    del backend
    kernels = np.asarray(rows["kernel_source"], dtype=str)
    irregular = (np.char.find(kernels, "fa4") >= 0) & (rows["head_dim"] == 512)
    return np.asarray(_few_grouped(rows) & (_window(rows) == 0) & ~irregular)


def _few_grouped(rows: Rows) -> NDArray[np.bool_]:
    heads = _heads(rows)
    return np.asarray(heads["num_heads"] <= MOST_GROUPED_HEADS * heads["num_kv_heads"])


def _rightly_routed(rows: Rows, backend: str) -> NDArray[np.bool_]:
    if backend not in GROUPED_ROUTING:
        return _all(rows, backend)
    wrong = np.ones(len(rows["latency"]), dtype=bool)
    for name, value in DEEPSEEK_V3.items():
        wrong &= rows[name] == value
    return ~wrong


def _expert_columns(r: Rows) -> dict[str, NDArray[Any]]:
    routing = [r[n] for n in ("num_tokens", "num_experts", "topk", "moe_ep_size", "distribution")]
    keys = list(zip(*routing, strict=True))
    loads = {key: _busiest_load(*key) for key in dict.fromkeys(keys)}
    features = np.array([loads[key] for key in keys])
    names = ("rows", "touched", *(f"padded_{tile}" for tile in TILE_ROWS))
    kernels = np.asarray(r["kernel_source"], dtype=str)
    return {
        "tokens": r["num_tokens"],
        "hidden": r["hidden_size"],
        "width": r["inter_size"] / r["moe_tp_size"],
        "num_experts_local": r["num_experts"] / r["moe_ep_size"],
        "top_k": r["topk"],
        "gated": np.where(np.char.find(kernels, "nongated") >= 0, 0.0, 1.0),
        "all_rows": r["num_tokens"] * r["topk"],
    } | dict(zip(names, features.T, strict=True))


@cache
def _busiest_load(
    tokens: int, num_experts: int, top_k: int, num_ranks: int, distribution: str
) -> tuple[float, ...]:
    """Mean condensed histogram of the busiest rank over the draws that the package averages."""
    counts = routed_counts(int(tokens), int(num_experts), int(top_k), str(distribution))
    ranks = counts.reshape(len(counts), int(num_ranks), -1)
    busiest = ranks.sum(axis=2).argmax(axis=1)
    load = ExpertLoad.of(ranks[np.arange(len(counts)), busiest])
    parts = (load.rows, load.touched, *(load.padded_rows[tile] for tile in TILE_ROWS))
    return tuple(float(part.mean()) for part in parts)


def routed_counts(tokens: int, num_experts: int, top_k: int, distribution: str) -> NDArray[np.int64]:
    """Tokens of each expert under a labelled distribution, ``(draws, num_experts)``.

    ``balanced``: token t takes experts (t + j ceil(E / k)) mod E. ``power_law_a``: expert weights from
    a density x^-a on [1, 0.8 T] (on [0.01, 2] if T k <= E), scaled to T k selections, rounded, at most
    T each, repaired to the exact sum.
    """
    if distribution == "balanced":
        stride = -(-num_experts // top_k)
        some, rest = divmod(tokens, num_experts)
        chosen = (np.arange(rest)[:, None] + stride * np.arange(top_k)) % num_experts
        partial = np.bincount(chosen.ravel(), minlength=num_experts)
        cycle = np.bincount(
            ((np.arange(num_experts)[:, None] + stride * np.arange(top_k)) % num_experts).ravel(),
            minlength=num_experts,
        )
        return np.asarray((partial + some * cycle)[None])
    exponent = float(distribution.removeprefix("power_law_"))
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > num_experts else (0.01, 2.0)
    rng = rng_for(0, f"aiconfigurator/{tokens}/{num_experts}/{top_k}/{distribution}")
    uniform = rng.random((POWER_LAW_DRAWS, num_experts))
    power = 1.0 - exponent
    weights = (low**power + uniform * (high**power - low**power)) ** (1.0 / power)
    wanted = weights / weights.sum(axis=1, keepdims=True) * (tokens * top_k)
    counts: NDArray[np.int64] = np.minimum(np.rint(wanted), tokens).astype(np.int64)
    for draw in range(POWER_LAW_DRAWS):
        _repair(counts[draw], wanted[draw], tokens * top_k, tokens)
    return counts


def _repair(counts: NDArray[np.int64], wanted: NDArray[np.float64], total: int, most: int) -> None:
    """Add or take selections, in the order of what rounding and clipping changed most, until they sum up."""
    missing = total - int(counts.sum())
    step = 1 if missing > 0 else -1
    order = np.argsort(-step * (wanted - counts), kind="stable")
    while missing:
        can = counts[order] < most if step > 0 else counts[order] > 0
        chosen = order[can][: abs(missing)]
        counts[chosen] += step
        missing -= step * len(chosen)


SOURCES = (
    _Source("gemm", "gemm_perf.parquet", "gemm", lambda r: _named(r["gemm_dtype"]), _gemm_columns, _all),
    _Source(
        "moe", "moe_perf.parquet", "moe", lambda r: _named(r["moe_dtype"]), _expert_columns, _rightly_routed
    ),
    _Source(
        *("attention", "context_attention_perf.parquet", "attention_prefill"),
        *(_attention_dtypes("attn_dtype"), _prefill_columns, _regular_prefill),
    ),
    _Source(
        *("attention", "generation_attention_perf.parquet", "attention_decode"),
        *(_attention_dtypes("attn_dtype"), _decode_columns, _regular_decode),
    ),
    _Source(
        *("mla", "context_mla_perf.parquet", "mla_prefill"),
        *(_attention_dtypes("mla_dtype"), _latent_prefill_columns, _all),
    ),
    _Source(
        *("mla", "generation_mla_perf.parquet", "mla_decode"),
        *(_attention_dtypes("mla_dtype"), _latent_decode_columns, _all),
    ),
)
