"""``moesim offload stream``: upper bounds of systems that stream all weights past the device each pass."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.errors import InputError
from moesim.units import GIB, fmt_bytes, fmt_quantity, fmt_seconds


def stream(
    model: Annotated[str, typer.Argument(help="Model, a bundled name or a path.")],
    node: Annotated[str, typer.Argument(help="Node: its first device, its host and the link between.")],
    *,
    prompt: Annotated[int, typer.Option(min=1, help="Prompt tokens of a request. [tokens]")] = 98,
    generated: Annotated[int, typer.Option(min=1, help="New tokens of a request. [tokens]")] = 64,
    kv_gib: Annotated[float, typer.Option(min=0, help="Host memory for keys and values. [GiB]")] = 64.0,
    dtype: Annotated[str, typer.Option(help="Format of weights and of keys and values.")] = "bf16",
    json: bool = JSON_OPTION,
) -> None:
    """Saturating batch, time of a pass, tokens a second with and without overlapped prefill (MoE-Lens)."""
    from moesim.hardware.load import load_cluster  # noqa: PLC0415
    from moesim.model import Dtypes, load  # noqa: PLC0415
    from moesim.model.parameters import kv_bytes_per_token  # noqa: PLC0415
    from moesim.offload.throughput import streamed_bounds  # noqa: PLC0415

    spec, host = load(model), load_cluster(node).node
    if host.host.pcie is None:
        raise InputError.at("NODE", node, "a node with a link between host and device")
    bounds = streamed_bounds(
        spec,
        Dtypes(weights=dtype, experts=dtype, kv=dtype, head=dtype),
        flops_per_s=host.device.dense_peak_flops_per_s(host.device.compute_dtype(dtype)),
        link_bytes_per_s=host.host.pcie.bandwidth_bytes_per_s,
        host_bytes_per_s=host.host.dram.bandwidth_bytes_per_s,
        prompt=prompt,
        generated=generated,
        kv_capacity_bytes=kv_gib * GIB,
    )
    if json:
        emit_json(envelope("offload stream", metrics=bounds.metrics()))
        return
    full = bounds.saturating_tokens * (prompt + generated) * kv_bytes_per_token(spec, dtype)
    cells = [
        ["weights that pass the link", fmt_bytes(bounds.weight_bytes)],
        ["a pass of them", fmt_seconds(bounds.pass_s)],
        ["tokens of a pass that saturate the device", fmt_quantity(bounds.saturating_tokens, "tokens")],
        [
            "keys and values of as many sequences",
            fmt_bytes(full),
        ],
        ["attention of the CPU in a pass", fmt_seconds(bounds.cpu_attention_s)],
        ["bound, prefill and decode mixed", fmt_quantity(bounds.overlapped_tokens_per_s, "tokens_per_s")],
        ["bound, whole batches", fmt_quantity(bounds.separate_tokens_per_s, "tokens_per_s")],
    ]
    table(
        f"{spec.name} on {host.name}: {prompt} + {generated} tokens, {kv_gib:g} GiB of cache",
        ["what", ""],
        cells,
    )
