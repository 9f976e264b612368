"""Measured tables of collectives and exchanges in the PyPI package ``aiconfigurator-core``.

Only read, never copied into the repository; fits made from them are. What the columns mean was read from
the package's documentation: sizes of collectives are in elements and follow the NCCL tests (gathered
output, full input of a reduction or exchange); times of DeepEP and of the unified exchange table are in
microseconds, the others in milliseconds. The tables of several H200 nodes are, row by row, those of H100
nodes: one cluster was measured, not two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.files import find, listed, read_tree
from moesim.units import MS, US

PUBLISHED_ROOM = "calibration/published"

Rows = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float64]

COLLECTIVES = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
"""Operation name of the package -> ours."""

ELEMENT_BYTES = {"half": ("fp16", 2), "int8": ("int8", 1), "bfloat16": ("bf16", 2), "float16": ("fp16", 2)}
"""Datatype name of the package -> ours and the bytes of an element."""

CUSTOM_LIBRARIES = {
    "SGLang_CustomAllReduce_graph": "sglang",
    "SGLang_CustomAllReduce_eager": "sglang_eager",
    "vLLM_custom_graph": "vllm",
    "vLLM_custom_eager": "vllm_eager",
    "TRTLLM": "tensorrt_llm",
    "TRTLLM_MNNVL_oneshot": "tensorrt_llm_one_shot",
    "TRTLLM_MNNVL_twoshot": "tensorrt_llm_two_shot",
}

DISPATCH_FP8 = 1.0 + 4.0 / 128
"""Bytes of an element dispatched in fp8 with one fp32 scale for 128 elements."""

PAYLOAD_BYTES = {"bfloat16": 2.0, "fp8": 1.0, "nvfp4": 0.5 + 1.0 / 16}
"""Bytes of an element on the wire, block scales included."""

COMBINE_FP8 = 1.0
MOST_GROUPS = 4
"""DeepEP's benchmark between nodes sends a token to the experts of at most so many nodes."""

GPUS_PER_NODE = {"gb200": 4, "gb300": 4}


@dataclass(frozen=True)
class Table:
    """Times of one operation of one library on one device.

    Attributes
    ----------
    family, source, dtype : str
        Operation (``all_reduce``, ``normal``), library and, of a collective, datatype; of an exchange
        ``dispatch`` or ``combine`` stands for it.
    device : str
        Name of the device profile.
    columns : mapping of str to ndarray, ``(row,)``
        Of a collective ``num_ranks`` and ``payload_bytes``.
    seconds : ndarray, ``(row,)``
        Measured. [s]
    evidence : str
        Grade and origin.
    """

    family: str
    source: str
    dtype: str
    device: str
    columns: Mapping[str, NDArray[Any]]
    seconds: Floats
    evidence: str

    @property
    def num_rows(self) -> int:
        """Measured rows."""
        return len(self.seconds)


def collective_tables(folder: Path, device: str, version: str) -> list[Table]:
    """Collectives of NCCL and the engines' own all-reduces: newest release of each library and kernel."""
    newest: dict[tuple[str, str, str], Table] = {}
    paths = [*folder.glob("comm/nccl/*/nccl_perf.parquet")]
    paths += folder.glob("comm/*/*/custom_allreduce_perf.parquet")
    for path in sorted(paths, key=_release):
        for table in _collectives_of(path, device, version):
            newest[table.family, table.source, table.dtype] = table
    return list(newest.values())


def exchange_tables(folder: Path, device: str, version: str) -> list[Table]:
    """DeepEP (normal and low latency) and NVLink exchanges: newest release that covers the most nodes."""
    tables: dict[tuple[str, str, str, bool], Table] = {}
    sources = (
        ("wideep_deepep_normal_perf.parquet", _normal),
        ("wideep_deepep_ll_perf.parquet", _low_latency),
        ("trtllm_alltoall_perf.parquet", _nvlink),
    )
    for name, tables_of in sources:
        for path in sorted(folder.glob(f"comm/*/*/{name}"), key=_release):
            evidence = _evidence(path, version)
            for table in tables_of(_rows(path), device, evidence):
                many = bool((table.columns["num_domains"] > 1).any())
                tables[table.family, table.source, table.dtype, many] = table
    return list(tables.values())


def published_tables(device: str) -> list[Table]:
    """Exchanges of a device whose times are printed, from ``calibration/published``."""
    tables = []
    for name in listed(PUBLISHED_ROOM, suffixes=(".yaml",)):
        given = read_tree(find(name, PUBLISHED_ROOM)).data
        if given["device"] != device:
            continue
        rows = [row for row in given["rows"] if row["ranks"] > given["ranks_per_domain"]]
        ranks = np.array([row["ranks"] for row in rows], dtype=np.float64)
        tokens = np.array([row["tokens"] for row in rows], dtype=np.float64)
        domains = ranks / given["ranks_per_domain"]
        for phase, size in given["element_bytes"].items():
            row_bytes = np.full(len(rows), float(given["width"] * size))
            copied = tokens * given["top_k"] * row_bytes
            columns = {
                "tokens": tokens,
                "row_bytes": row_bytes,
                "copies": tokens * given["top_k"],
                "scale_up_bytes": copied * (1 / domains - 1 / ranks),
                "nic_bytes": copied * (1 - 1 / domains),
                "num_ranks": ranks,
                "num_domains": domains,
                "num_experts": np.full(len(rows), float(given["experts"])),
                "sms": np.zeros(len(rows)),
            }
            seconds = np.array([row[f"{phase}_s"] for row in rows])
            tables.append(Table(name, name, phase, device, columns, seconds, given["source"]))
    return tables


def _release(path: Path) -> tuple[str, list[int]]:
    return path.parts[-3], [int(number) for number in re.findall(r"\d+", path.parts[-2])]


def _evidence(path: Path, version: str) -> str:
    return f"aiconfigurator-core {version} (Apache-2.0), {path.parts[-3]} {path.parts[-2]}, {path.stem}"


def _rows(path: Path) -> dict[str, NDArray[Any]]:
    import pyarrow.parquet  # noqa: PLC0415

    arrow = pyarrow.parquet.read_table(path)
    return {name: arrow[name].to_numpy() for name in arrow.column_names}


def _collectives_of(path: Path, device: str, version: str) -> Iterator[Table]:
    rows = _rows(path)
    nccl = "nccl_dtype" in rows
    dtypes = np.asarray(rows["nccl_dtype" if nccl else "allreduce_dtype"], dtype=str)
    kernels = np.asarray(rows["kernel_source"], dtype=str)
    operations = np.asarray(rows["op_name"], dtype=str)
    for operation, kernel, dtype in sorted(set(zip(operations, kernels, dtypes, strict=True))):
        library = "nccl" if nccl else CUSTOM_LIBRARIES.get(kernel)
        if operation not in COLLECTIVES or dtype not in ELEMENT_BYTES or library is None:
            continue
        own = (operations == operation) & (kernels == kernel) & (dtypes == dtype) & (rows["latency"] > 0)
        name, size = ELEMENT_BYTES[dtype]
        columns = {
            "num_ranks": rows["num_gpus"][own].astype(np.float64),
            "payload_bytes": rows["message_size"][own].astype(np.float64) * size,
        }
        key = (COLLECTIVES[operation], library, name, device)
        yield Table(*key, columns, rows["latency"][own].astype(np.float64) * MS, _evidence(path, version))


def _normal(rows: Rows, device: str, evidence: str) -> Iterator[Table]:
    for phase in ("dispatch", "combine"):
        seconds = rows[f"{phase}_transmit_us"].astype(np.float64) * US
        element = DISPATCH_FP8 if phase == "dispatch" else 2.0
        columns = _exchange(rows, device, element) | {"sms": rows[f"{phase}_sms"].astype(np.float64)}
        columns["notify_s"] = rows[f"{phase}_notify_us"].astype(np.float64) * US
        for many in (False, True):
            own = (columns["num_domains"] > 1) == many
            if own.any():
                yield _part("normal", phase, device, columns, seconds, own, evidence)


def _low_latency(rows: Rows, device: str, evidence: str) -> Iterator[Table]:
    for phase in ("dispatch", "combine"):
        seconds = rows[f"{phase}_avg_t_us"].astype(np.float64) * US
        columns = _exchange(rows, device, DISPATCH_FP8 if phase == "dispatch" else 2.0)
        # every (token, expert) copy travels
        copied, share = columns["copies"] * columns["row_bytes"], 1 / columns["num_domains"]
        columns["scale_up_bytes"] = copied * (share - 1 / columns["num_ranks"])
        columns["nic_bytes"] = copied * (1 - share)
        for many in (False, True):
            own = (columns["num_domains"] > 1) == many
            if own.any():
                yield _part("low_latency", phase, device, columns, seconds, own, evidence)


def _nvlink(rows: Rows, device: str, evidence: str) -> Iterator[Table]:
    sides = np.asarray(rows["kernel_source"], dtype=str)
    operations = np.asarray(rows["op_name"], dtype=str)
    payload = np.array([PAYLOAD_BYTES.get(str(name), np.nan) for name in rows["moe_dtype"]])
    ranks = rows["moe_ep_size"].astype(np.float64)
    shared = {"node_num": np.ones(len(ranks)), "num_token": rows["num_tokens"], "num_topk": rows["topk"]}
    for side, family in (("NVLinkOneSided", "nvlink_one_sided"), ("NVLinkTwoSided", "nvlink_two_sided")):
        for phase in ("dispatch", "combine", "combine_low_precision"):
            own = (sides == side) & (operations == f"alltoall_{phase}") & np.isfinite(payload)
            if not own.any():
                continue
            element = payload if phase == "dispatch" else np.full(len(ranks), 2.0)
            element = np.full(len(ranks), COMBINE_FP8) if phase == "combine_low_precision" else element
            columns = _exchange({**rows, **shared}, device, element)
            # balanced routing of the benchmark spreads the choices of a token over as many ranks as it can
            reached = np.minimum(ranks, rows["topk"])
            columns["num_ranks"] = ranks
            columns["scale_up_bytes"] = columns["row_bytes"] * columns["tokens"] * reached * (1 - 1 / ranks)
            columns["nic_bytes"] = np.zeros(len(ranks))
            seconds = rows["latency"].astype(np.float64) * MS
            if phase == "dispatch":
                prepares = (sides == side) & (operations == "alltoall_prepare")
                columns["notify_s"] = _medians(ranks, seconds, prepares)
            yield _part(family, phase, device, columns, seconds, own, evidence)


def _medians(ranks: Floats, seconds: Floats, own: NDArray[np.bool_]) -> Floats:
    """For each row the median time of the ``own`` rows of as many ranks; 0 where there are none."""
    found = np.zeros(len(ranks))
    for number in np.unique(ranks[own]):
        found[ranks == number] = np.median(seconds[own & (ranks == number)])
    return found


def _part(
    family: str,
    phase: str,
    device: str,
    columns: Mapping[str, NDArray[Any]],
    seconds: Floats,
    own: NDArray[np.bool_],
    evidence: str,
) -> Table:
    some = {name: np.broadcast_to(column, len(seconds))[own] for name, column in columns.items()}
    source = "deepep" if family in {"normal", "low_latency"} else "tensorrt_llm"
    return Table(family, source, phase, device, some, seconds[own], evidence)


def _exchange(rows: Rows, device: str, element_bytes: float | Floats) -> dict[str, Floats]:
    """What a rank moves in a benchmark with random routing; see :class:`~moesim.network.forms.Moved`."""
    from moesim.network.forms import hit_probability  # noqa: PLC0415

    tokens, domains = rows["num_token"].astype(np.float64), rows["node_num"].astype(np.float64)
    experts, top_k = rows["num_experts"].astype(np.float64), rows["num_topk"].astype(np.float64)
    size = float(GPUS_PER_NODE.get(device, 8))
    ranks = domains * size
    row_bytes = rows["hidden_size"].astype(np.float64) * element_bytes
    ranks_hit = ranks * hit_probability(ranks, experts, top_k)
    groups = np.minimum(domains, MOST_GROUPS)
    domains_hit = groups * hit_probability(groups, experts * groups / domains, top_k)
    return {
        "tokens": tokens,
        "row_bytes": row_bytes,
        "copies": tokens * top_k,
        "scale_up_bytes": tokens * row_bytes * ranks_hit * (1 - 1 / size),
        "nic_bytes": tokens * row_bytes * domains_hit * (1 - 1 / domains),
        "num_ranks": ranks,
        "num_domains": domains,
        "num_experts": experts,
        "sms": np.zeros(len(tokens)),
    }
