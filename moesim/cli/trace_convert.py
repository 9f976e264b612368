"""``moesim trace convert``: traces from and to what other programs read and write."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from moesim.cli.output import JSON_OPTION, note
from moesim.cli.trace_common import FORCE, refuse_existing, tell
from moesim.errors import InputError, Problem

if TYPE_CHECKING:
    from moesim.traces.interchange import Hints


def _formats() -> list[str]:
    from moesim.traces.formats import formats  # noqa: PLC0415

    return formats.names()


def convert(
    source: Path = typer.Argument(help="File or folder to read."),
    out: Path = typer.Argument(help="File or folder to write."),
    *,
    from_format: str = typer.Option("moesim", "--from", help="Its format.", autocompletion=_formats),
    to_format: str = typer.Option("moesim", "--to", help="Format to write.", autocompletion=_formats),
    model: str | None = typer.Option(None, help="Model of the trace: a bundled name or config.json."),
    experts: int | None = typer.Option(None, min=1, help="Routed experts a layer."),
    top_k: int | None = typer.Option(None, min=1, help="Experts a token."),
    hidden_layers: int | None = typer.Option(None, min=1, help="All layers of the model."),
    moe_layers: str | None = typer.Option(None, help="Numbers of its MoE layers, such as 3-60 or 1,3,5."),
    text: str = typer.Option("", "--source", help="What the trace is of; kept in it."),
    date: str = typer.Option("", help="Date kept in the trace; no clock is read."),
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Convert a trace between formats; 'moesim policies' lists them under trace_format."""
    from moesim.traces.formats import Writable, formats  # noqa: PLC0415
    from moesim.traces.interchange import Hints  # noqa: PLC0415
    from moesim.traces.routing import RoutingTrace  # noqa: PLC0415

    reader = formats.build(from_format, field="--from")
    writer = formats.build(to_format, field="--to")
    if not isinstance(writer, Writable):
        known = [name for name, kind in formats.items() if hasattr(kind, "write")]
        message = f"{to_format!r} can only be read; accepted: {', '.join(known)}"
        raise InputError([Problem("--to", message)])
    if not source.exists():
        raise InputError([Problem("source", "no such file or folder", str(source))])
    refuse_existing([out], force)
    hints = Hints(
        model=model or "",
        num_experts=experts,
        top_k=top_k,
        num_hidden_layers=hidden_layers,
        moe_layers=None if moe_layers is None else numbers_of(moe_layers, "--moe-layers"),
        source=text,
        date=date,
    )
    found = reader.read(source, hints if model is None else _of_model(model, hints))
    files = writer.write(out, found)
    sizes = {"layers": found.info.num_layers, "experts": found.info.num_experts}
    if isinstance(found, RoutingTrace):
        sizes = {"tokens": found.num_tokens, "requests": found.num_requests, "top_k": found.top_k, **sizes}
        if from_format != "moesim" and hints.num_experts is None and model is None:
            note(f"experts taken as {found.info.num_experts}: give --model or --experts if there are more")
    else:
        sizes = {"steps": len(found.counts), **sizes}
    tell("trace convert", sizes, files[:8], as_json)


def _of_model(name: str, hints: Hints) -> Hints:
    """Hints completed by a bundled model or a config.json; what the user gave stays."""
    from dataclasses import replace  # noqa: PLC0415

    from moesim.model import load  # noqa: PLC0415

    spec = load(name)
    return replace(
        hints,
        model=spec.name,
        num_experts=hints.num_experts or spec.num_experts,
        top_k=hints.top_k or spec.top_k,
        num_hidden_layers=hints.num_hidden_layers or spec.num_layers,
        moe_layers=hints.moe_layers or spec.moe_layers,
    )


def numbers_of(text: str, field: str) -> tuple[int, ...]:
    """``3-5,8`` as 3, 4, 5, 8."""
    numbers: list[int] = []
    for part in text.split(","):
        low, dash, high = part.partition("-")
        ends = [low, high if dash else low]
        if not all(e.strip().isdigit() and len(e) < 6 for e in ends):
            raise InputError.at(field, text, "numbers and ranges such as 3-60 or 1,3,5")
        numbers += range(int(ends[0]), int(ends[1]) + 1)
    return tuple(sorted(set(numbers)))
