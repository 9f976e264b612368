"""``moesim report``: page and figures of finished runs, drawn anew from their ``run.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.errors import InputError, Problem
from moesim.units import MIB

MAX_BYTES = 256 * MIB


def command(
    run_dirs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR", help="Folders that `moesim run --out` wrote.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the page; default: the one RUN_DIR. Files of reports in it are replaced."
        ),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page; default: that of the run.")] = None,
) -> None:
    """Write one HTML report of finished runs, and the figures of a single one."""
    from moesim.report.figures import drawn  # noqa: PLC0415
    from moesim.report.page import write_page  # noqa: PLC0415
    from moesim.report.style import save_pngs  # noqa: PLC0415

    if out is None and len(run_dirs) > 1:
        raise InputError([Problem("--out", "missing (required for more than one RUN_DIR)")])
    documents = [_read(folder / "run.json") for folder in run_dirs]
    folder = out or run_dirs[0]
    heading = title or (documents[0]["title"] if len(documents) == 1 else f"{len(documents)} runs of moesim")
    figures = [drawn(document) for document in documents]
    written = [write_page(documents, figures, folder / "report.html", title=heading)]
    if len(documents) == 1:
        written += save_pngs(figures[0], folder)
    for path in written:
        typer.echo(str(path))


def _read(path: Path) -> Mapping[str, Any]:
    """Document of a run, or one error that says what the file is not."""
    from moesim.report.document import check_document  # noqa: PLC0415

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
    return check_document(document, str(path))
