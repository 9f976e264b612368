"""``moesim offload bits``: width of every expert under a mean, by an integer programme."""

from __future__ import annotations

from typing import Annotated

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, table
from moesim.cli.trace_common import TRACE, loaded
from moesim.errors import InputError
from moesim.units import fmt_bytes


def bits(
    trace: str = TRACE,
    *,
    model: Annotated[str, typer.Option(help="Model whose experts these are.")],
    mean_bits: Annotated[float, typer.Option(help="Bits of a weight, mean of a layer. [bit]")] = 2.5,
    widths: Annotated[str, typer.Option(help="Formats to choose from, comma-separated. [bit]")] = "1,2,3",
    other_bits: Annotated[float, typer.Option(min=1, help="Bits of what is not an expert. [bit]")] = 4.0,
    group: Annotated[int, typer.Option(min=1, help="Weights that share a 16-bit scale.")] = 128,
    json: bool = JSON_OPTION,
) -> None:
    """Bits of every expert that cost least accuracy (MC-MoE), and the bytes that they take."""
    from moesim.model import load  # noqa: PLC0415
    from moesim.offload.variants import activated_size_bytes, mixed_model_bytes  # noqa: PLC0415
    from moesim.scenario.expert_bits import allocate_bits  # noqa: PLC0415

    found, spec = loaded(trace), load(model)
    if found.num_experts != spec.num_experts:
        accepted = f"a model with the {found.num_experts} experts of the trace"
        raise InputError.at("--model", f"{model} with {spec.num_experts} experts", accepted)
    counts = found.counts()
    plan = allocate_bits(counts, mean_bits, widths=_widths(widths))
    chosen = plan.activated_bits(counts)
    stored = mixed_model_bytes(spec, expert_bits=plan.mean_bits, other_bits=other_bits, group=group)
    active = activated_size_bytes(spec, expert_bits=chosen, other_bits=other_bits, group=group)
    gap = 1 - plan.lower_bound / plan.error if plan.error else 0.0
    layers = [int(layer) for layer in found.info.layer_indices]
    of_width = [{str(w): int((row == w).sum()) for w in sorted(set(row.tolist()))} for row in plan.bits]
    rows = [{"layer": layer, "bits": counted} for layer, counted in zip(layers, of_width, strict=True)]
    metrics = {
        "mean_bits": {"value": plan.mean_bits, "unit": "bit"},
        "activated_bits": {"value": chosen, "unit": "bit"},
        "stored_bytes": {"value": stored, "unit": "bytes"},
        "activated_bytes": {"value": active, "unit": "bytes"},
        "weighted_error": {"value": plan.error, "unit": "fraction"},
        "gap_fraction": {"value": gap, "unit": "fraction"},
    }
    if json:
        emit_json(envelope("offload bits", metrics=metrics, rows=rows, bits=plan.bits.tolist()))
        return
    title = (
        f"{spec.name}: {plan.mean_bits:.2f} bits an expert, {chosen:.2f} where tokens go; "
        f"{fmt_bytes(stored)} stored, {fmt_bytes(active)} a token; gap {100 * gap:.2g} %"
    )
    table(
        title,
        ["layer", "experts of each width"],
        [
            [layer, ", ".join(f"{n} at {w}" for w, n in counted.items())]
            for layer, counted in zip(layers, of_width, strict=True)
        ],
    )


def _widths(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError.at("--widths", text, "whole numbers with commas between") from None
