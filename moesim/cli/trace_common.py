"""What the ``moesim trace`` commands share: finding traces, what exists, what was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from moesim.cli.output import emit_json, envelope, metric_rows, note, table
from moesim.errors import InputError, Problem

if TYPE_CHECKING:
    from moesim.traces import RoutingTrace

TRACE = typer.Argument(help="Trace file, name of a bundled one, or FORMAT:FILE of a known format.")
OUT = typer.Option(..., "--out", help="Trace file to write.")
FORCE = typer.Option(False, "--force", help="Overwrite existing files.")
SEED = typer.Option(0, min=0, help="Seed of everything random.")


def loaded(trace: str) -> RoutingTrace:
    """Trace of a file or a bundled name."""
    from moesim.files import find  # noqa: PLC0415
    from moesim.traces import read_trace  # noqa: PLC0415
    from moesim.traces.formats import formats  # noqa: PLC0415
    from moesim.traces.interchange import Hints  # noqa: PLC0415
    from moesim.traces.replay import routing_only  # noqa: PLC0415

    name, colon, file = trace.partition(":")
    if colon and name in formats.names():
        return routing_only(formats.build(name).read(Path(file), Hints(model=Path(file).stem)))
    return read_trace(find(trace, "traces", field="trace", suffixes=(".safetensors",)))


def assignment(text: str) -> tuple[str, Any]:
    """Name and value of ``NAME=VALUE``."""
    from moesim.files import Tree, set_value  # noqa: PLC0415

    tree = Tree({})
    set_value(tree, text)
    name, value = next(iter(tree.data.items()))
    return name, value


def refuse_existing(files: list[Path], force: bool) -> None:
    """Refuse files that exist, unless forced."""
    problems = [
        Problem("--out", "exists; choose another name or give --force", str(path))
        for path in files
        if path.exists() and not force
    ]
    if problems:
        raise InputError(problems)


def tell(command: str, sizes: Mapping[str, float], files: list[Path], as_json: bool) -> None:
    """What a command made: sizes and files."""
    metrics = {
        name: {"value": size, "unit": "tokens" if name.endswith("tokens") else "count"}
        for name, size in sizes.items()
    }
    if as_json:
        emit_json(envelope(command, metrics=metrics, files=[str(path) for path in files]))
        return
    table("Routing trace", ["", ""], [row[:2] for row in metric_rows(metrics)], right=(1,))
    note(f"wrote {', '.join(map(str, files))}; next: moesim trace stats {files[0]}")
