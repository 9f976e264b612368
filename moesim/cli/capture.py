"""``moesim capture``: routing of a real model on given text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, metric_rows, note, table
from moesim.errors import InputError, Problem

if TYPE_CHECKING:
    from moesim.traces import RoutingTrace

MODEL = typer.Argument(
    metavar="DIR_OR_CLASS",
    help="Local folder with config.json, safetensors weights and a tokenizer; or, with --tiny, a class.",
)
TEXT = typer.Option(..., "--text", help="Text file; its name (or NAME=FILE) becomes the domain. Repeatable.")
OUT = typer.Option(None, "--out", help="Trace file to write; default: the model's name.")


def command(
    model: str = MODEL,
    *,
    text: list[str] = TEXT,
    out: Path | None = OUT,
    tiny: bool = typer.Option(
        False, "--tiny", help="Small random model of a class of transformers, for instance OlmoeForCausalLM."
    ),
    generate: int = typer.Option(0, "--generate", min=0, help="Tokens decoded after a prompt. [tokens]"),
    generate_requests: int = typer.Option(8, min=0, help="Requests of each text that generate."),
    sequence_tokens: int = typer.Option(256, min=1, help="Length of each request's prompt. [tokens]"),
    max_tokens: int | None = typer.Option(None, min=1, help="Most tokens read of each text. [tokens]"),
    temperature: float = typer.Option(0.0, min=0.0, help="0 decodes greedily, otherwise samples."),
    batch: int = typer.Option(8, min=1, help="Requests that run together."),
    part: str = typer.Option(
        "", help="Part of the names of the blocks that are watched, for instance encoder or decoder."
    ),
    weights: bool = typer.Option(True, help="Keep gate weights; without them the file is a third."),
    seed: int = typer.Option(0, help="Seed of the sampling and of random weights."),
    dtype: str = typer.Option("auto", help="Type computed in: auto, float32, bfloat16 or float16."),
    device: str = typer.Option("cpu", help="Torch device: cpu or cuda."),
    name: str = typer.Option("", help="Model name kept in the trace (default: the folder's name)."),
    source: str = typer.Option("", help="Where the text is from; kept in the trace."),
    date: str = typer.Option("", help="Date kept in the trace; no clock is read."),
    force: bool = typer.Option(False, "--force", help="Overwrite an existing file."),
    restart: bool = typer.Option(False, "--restart", help="Discard what an interrupted capture left."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Capture which experts a local model routes given text to; what was interrupted goes on."""
    from moesim.traces import capture as room  # noqa: PLC0415

    folder = Path(model)
    out = out or Path(f"{folder.name}.safetensors")
    if out.exists() and not force:
        raise InputError([Problem("--out", "exists; choose another name or give --force", str(out))])
    settings = room.CaptureSettings(
        sequence_tokens=sequence_tokens,
        max_tokens=max_tokens,
        generate_tokens=generate,
        generate_requests=generate_requests,
        batch_requests=batch,
        temperature=temperature,
        seed=seed,
        weights=weights,
        part=part,
    )
    texts = [room.Text(domain, content) for domain, content in map(_read, text)]
    if tiny:
        room.use_one_thread()
        subject = room.random_model(model, seed=seed, device=device, name=name)
        kind = "captured by moesim from a small random model, of real shape but untrained"
    elif not folder.exists() and model.isidentifier():
        message = "no such folder; accepted: a folder, or a class of transformers with --tiny"
        raise InputError([Problem("model", message, model)])
    else:
        subject = room.load_model(folder, dtype=dtype, device=device, name=name)
        kind = "captured by moesim from the model's own router"
    said = source or f"text: {', '.join(t.domain for t in texts)}"
    with _bar() as progress:
        trace = room.capture(
            subject,
            texts,
            settings,
            out,
            source=f"{kind}; {said}",
            date=date,
            progress=progress,
            restart=restart,
        )
    _tell(trace, out, as_json)


def _tell(trace: RoutingTrace, out: Path, as_json: bool) -> None:
    """What was captured, and into which files."""
    from moesim.traces.capture.spool import manifest_path  # noqa: PLC0415

    metrics: dict[str, dict[str, Any]] = {
        "tokens": {"value": trace.num_tokens, "unit": "tokens"},
        "decode_tokens": {"value": int((trace.phase == 1).sum()), "unit": "tokens"},
        "requests": {"value": trace.num_requests, "unit": "count"},
        "layers": {"value": trace.num_layers, "unit": "count"},
        "experts": {"value": trace.num_experts, "unit": "count"},
        "experts_per_token": {"value": trace.top_k, "unit": "count"},
    }
    manifest = manifest_path(out)
    if as_json:
        emit_json(envelope("capture", metrics=metrics, files=[str(out), str(manifest)]))
        return
    title = f"Captured routing of {trace.info.model}"
    table(title, ["", ""], [r[:2] for r in metric_rows(metrics)], right=(1,))
    note(f"wrote {out} and {manifest.name}; next: moesim trace stats {out}")


def _read(argument: str) -> tuple[str, str]:
    """Domain and content of ``FILE`` or ``NAME=FILE``."""
    domain, equals, file = argument.partition("=")
    path = Path(file if equals else argument)
    try:
        return (domain if equals else path.stem), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("--text", f"cannot be read as text: {error}", str(path))]) from None


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """Progress of requests on a terminal; silent in a pipe."""
    if not sys.stderr.isatty():
        yield lambda _done, _all: None
        return
    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415

    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        task = shown.add_task("requests", total=None)
        yield lambda done, every: shown.update(task, completed=done, total=every)
