"""What every command prints: one JSON document, or tables a person reads."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from moesim import __version__
from moesim.errors import InputError, Problem
from moesim.files import to_json
from moesim.units import fmt_quantity

SCHEMA_VERSION = 1

JSON_OPTION = typer.Option(False, "--json", help="Print one JSON document and nothing else.")


def envelope(command: str, **parts: Any) -> dict[str, Any]:
    """The output contract's outer document; parts that are None are left out."""
    head = {"schema_version": SCHEMA_VERSION, "moesim_version": __version__, "command": command}
    return head | {name: part for name, part in parts.items() if part is not None}


def emit_json(document: Mapping[str, Any]) -> None:
    """One document on stdout."""
    sys.stdout.write(to_json(document))


def note(text: str) -> None:
    """A line for the person on stderr."""
    typer.echo(text, err=True)


def refuse_overwriting(out: Path | None, name: str, *, force: bool) -> None:
    """Error where ``out`` holds the file ``name`` of an earlier run already, unless that is wanted."""
    if out is not None and not force and (out / name).exists():
        message = f"{out} holds {name} already; accepted: a new folder, or --force"
        raise InputError([Problem("--out", message)])


def table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, right: Sequence[int] = ()
) -> None:
    """Rich table on a terminal, aligned plain text in a pipe; ``right`` are right-aligned column numbers."""
    if not sys.stdout.isatty():
        _plain_table(title, columns, rows, right)
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    view = Table(title=title, title_justify="left", header_style="bold")
    for index, column in enumerate(columns):
        view.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        view.add_row(*(_escaped(cell) for cell in row))
    Console().print(view)


def _escaped(cell: object) -> str:
    return str(cell).replace("[", r"\[")


def _plain_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int]
) -> None:
    cells = [list(map(str, columns)), *([str(c) for c in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    typer.echo(title)
    for row in cells:
        line = "  ".join(
            c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        typer.echo("  " + line.rstrip())


def metric_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows ``name, value, 80 % band`` of a metrics mapping of the output contract."""
    rows = []
    for name, metric in metrics.items():
        unit = metric.get("unit", "")
        spread = ""
        if "low" in metric and metric["low"] != metric["high"]:
            spread = f"{fmt_quantity(metric['low'], unit)} .. {fmt_quantity(metric['high'], unit)}"
        rows.append([name, fmt_quantity(metric["value"], unit), spread])
    return rows
