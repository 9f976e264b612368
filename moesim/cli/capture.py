"""``moesim capture``: routing of a real model on given text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, metric_rows, note, table
from moesim.errors import InputError, Problem

MODEL = typer.Argument(help="Local folder with config.json, safetensors weights and a tokenizer.")
TEXT = typer.Option(..., "--text", help="Text file; its name (or NAME=FILE) becomes the domain. Repeatable.")
OUT = typer.Option(..., "--out", help="Trace file to write.")


def command(
    model_dir: Path = MODEL,
    *,
    text: list[str] = TEXT,
    out: Path = OUT,
    generate: int = typer.Option(0, "--generate", min=0, help="Tokens decoded after a prompt. [tokens]"),
    generate_requests: int = typer.Option(8, min=0, help="Requests of each text that generate."),
    sequence_tokens: int = typer.Option(256, min=1, help="Length of each request's prompt. [tokens]"),
    max_tokens: int | None = typer.Option(None, min=1, help="Most tokens read of each text. [tokens]"),
    temperature: float = typer.Option(0.0, min=0.0, help="0 decodes greedily, otherwise samples."),
    batch: int = typer.Option(8, min=1, help="Requests that run together."),
    seed: int = typer.Option(0, help="Seed of the sampling."),
    dtype: str = typer.Option("auto", help="Type computed in: auto, float32, bfloat16 or float16."),
    device: str = typer.Option("cpu", help="Torch device: cpu or cuda."),
    name: str = typer.Option("", help="Model name kept in the trace (default: the folder's name)."),
    source: str = typer.Option("", help="Where the text is from; kept in the trace."),
    date: str = typer.Option("", help="Date kept in the trace; no clock is read."),
    force: bool = typer.Option(False, "--force", help="Overwrite an existing file."),
    as_json: bool = JSON_OPTION,
) -> None:
    """Capture which experts a local model routes given text to."""
    from moesim.traces import write_trace  # noqa: PLC0415
    from moesim.traces.capture import CaptureSettings, Text, capture, load_model  # noqa: PLC0415

    if out.exists() and not force:
        raise InputError([Problem("--out", "exists; choose another name or give --force", str(out))])
    settings = CaptureSettings(
        sequence_tokens=sequence_tokens,
        max_tokens=max_tokens,
        generate_tokens=generate,
        generate_requests=generate_requests,
        batch_requests=batch,
        temperature=temperature,
        seed=seed,
    )
    texts = [Text(domain, content) for domain, content in map(_read, text)]
    model, tokenizer = load_model(model_dir, dtype=dtype, device=device)
    said = source or f"text: {', '.join(t.domain for t in texts)}"
    trace = capture(
        model,
        tokenizer,
        texts,
        settings,
        name=name or model_dir.resolve().name,
        source=f"captured by moesim from the model's own router; {said}",
        date=date,
        progress=_progress,
    )
    write_trace(out, trace)
    metrics: dict[str, dict[str, Any]] = {
        "tokens": {"value": trace.num_tokens, "unit": "tokens"},
        "decode_tokens": {"value": int((trace.phase == 1).sum()), "unit": "tokens"},
        "requests": {"value": trace.num_requests, "unit": "count"},
        "layers": {"value": trace.num_layers, "unit": "count"},
        "experts": {"value": trace.num_experts, "unit": "count"},
        "experts_per_token": {"value": trace.top_k, "unit": "count"},
    }
    if as_json:
        emit_json(envelope("capture", metrics=metrics, files=[str(out)]))
    else:
        table(
            f"Captured routing of {trace.info.model}",
            ["", ""],
            [r[:2] for r in metric_rows(metrics)],
            right=(1,),
        )
        note(f"wrote {out}; next: moesim trace stats {out}")


def _read(argument: str) -> tuple[str, str]:
    """Domain and content of ``FILE`` or ``NAME=FILE``."""
    domain, equals, file = argument.partition("=")
    path = Path(file if equals else argument)
    try:
        return (domain if equals else path.stem), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError([Problem("--text", f"cannot be read as text: {error}", str(path))]) from None


def _progress(done: int, requests: int) -> None:
    if done == requests or done % 64 == 0:
        note(f"{done} of {requests} requests")
