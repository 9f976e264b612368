"""``moesim report``: page and figures of a finished run, drawn anew from its ``run.json``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import InputError, Problem
from moesim.units import MIB

NEEDED = (
    "command",
    "metrics",
    "headline",
    "breakdown",
    "evidence",
    "limiter",
    "views",
    "scenario",
    "title",
    "answer",
)
MAX_BYTES = 256 * MIB


def command(
    run_dir: Annotated[Path, typer.Argument(help="Folder that `moesim run --out` wrote.")],
) -> None:
    """Write the HTML report and the figures of a finished run."""
    from moesim.report.figures import write_figures  # noqa: PLC0415
    from moesim.report.page import write_page  # noqa: PLC0415

    document = _read(run_dir / "run.json")
    written = [write_page([document], run_dir / "report.html", title=document["title"])]
    written += write_figures(document, run_dir)
    for path in written:
        typer.echo(str(path))


def _read(path: Path) -> Any:
    """Document of a run, or one error that says what the file is not."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError([Problem("", "larger than any run.json", str(path))])
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError([Problem("", f"cannot be read: {error.strerror}", str(path))]) from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError([Problem("", f"not JSON: {error}", str(path))]) from None
    if not isinstance(document, dict) or document.get("command") != "run":
        raise InputError(
            [Problem("command", "not a run of moesim; accepted: a run.json of moesim run", str(path))]
        )
    missing = [name for name in NEEDED if name not in document]
    if missing:
        raise InputError([Problem(name, "missing (required)", str(path)) for name in missing])
    return document
