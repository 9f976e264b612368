"""``moesim trace``: convert, show, measure, fit, generate, transform and slice routing traces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, metric_rows, table
from moesim.cli.trace_cache import cache
from moesim.cli.trace_common import FORCE, OUT, SEED, TRACE, assignment, loaded, refuse_existing, tell
from moesim.cli.trace_compare import compare, fit
from moesim.cli.trace_convert import convert
from moesim.cli.trace_measures import locality, shifts
from moesim.cli.trace_report import report
from moesim.cli.trace_slices import COMMANDS as SLICES
from moesim.errors import InputError, Problem

app = typer.Typer(
    help="Convert, show, measure, fit, generate, transform and slice routing traces.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command()(convert)
for command in (cache, compare, fit, locality, shifts, report, *SLICES):
    app.command()(command)

DOMAIN = typer.Option(None, help="Only tokens of this kind of text.")
PHASE = typer.Option(None, help="Only 'prefill' or only 'decode' tokens.")

SHOWN_BATCH = 64
"""Batch whose distinct experts stand for the whole curve. [tokens]"""
_UNITS = {"mutual_information_nats": "nat", "dead_experts": "", "touched_experts": ""}


@app.command()
def show(trace: str = TRACE, as_json: bool = JSON_OPTION) -> None:
    """What a trace is of: model, shape, domains, phases, source."""
    found = loaded(trace)
    info = found.info
    domains = {name: int((found.domain_index == index).sum()) for index, name in enumerate(info.domains)}
    described: dict[str, Any] = {
        "model": info.model,
        "num_experts": info.num_experts,
        "top_k": found.top_k,
        "layer_indices": list(info.layer_indices),
        "requests": found.num_requests,
        "tokens": found.num_tokens,
        "prefill_tokens": int((found.phase == 0).sum()),
        "decode_tokens": int((found.phase == 1).sum()),
        "domain_tokens": domains,
        "gate_weights": found.gate_weights is not None,
        "evidence": info.evidence,
        "source": info.source,
        "date": info.date,
    }
    if as_json:
        emit_json(envelope("trace show", trace=described))
        return
    described["layer_indices"] = ", ".join(map(str, info.layer_indices))
    described["domain_tokens"] = ", ".join(f"{name} {count}" for name, count in domains.items())
    table(f"Trace {trace}", ["field", "value"], [[k, v] for k, v in described.items()])


@app.command()
def stats(
    trace: str = TRACE,
    domain: str | None = DOMAIN,
    phase: str | None = PHASE,
    per_layer: bool = typer.Option(False, "--per-layer", help="Also print every layer."),
    seed: int = SEED,
    as_json: bool = JSON_OPTION,
) -> None:
    """Skew, repetition and predictability of a trace, averaged over its layers."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces import summarize  # noqa: PLC0415

    found = loaded(trace)
    if domain is not None or phase is not None:
        found = found.select(domain=domain, phase=phase)
    summary = summarize(found, rng_for(seed, "trace/stats"))
    metrics = {name: {"value": value, "unit": _unit(name)} for name, value in summary.means().items()}
    layers = [
        {
            "layer": layer,
            "imbalance_ratio": float(summary.imbalance_ratio[i]),
            "gini": float(summary.gini_fraction[i]),
            "entropy_fraction": float(summary.entropy_fraction[i]),
            "dead_experts": int(summary.dead_experts[i]),
            "repeat_fraction": float(summary.repeat_fraction[i]),
        }
        for i, layer in enumerate(found.info.layer_indices)
    ]
    if as_json:
        metrics["gini"] = metrics.pop("gini_fraction")
        metrics["touched_experts"] = metrics[f"touched_experts_{SHOWN_BATCH}"] | {"batch_tokens": SHOWN_BATCH}
        emit_json(envelope("trace stats", metrics=metrics, rows=layers))
        return
    rows = [row[:2] for row in metric_rows(metrics)]
    table(
        f"{found.num_tokens:,} tokens of {found.info.model}, mean over layers",
        ["statistic", "value"],
        rows,
        right=(1,),
    )
    if per_layer:
        cells = [[v if isinstance(v, int) else f"{v:.3f}" for v in layer.values()] for layer in layers]
        table("By layer", list(layers[0]), cells, right=range(len(layers[0])))


@app.command()
def generate(
    generator: str = typer.Argument(help="Registered generator, see 'moesim policies'."),
    *,
    out: Path = OUT,
    tokens: int = typer.Option(16_384, min=1, help="Rows. [tokens]"),
    layers: int = typer.Option(..., min=1, help="Mixture-of-experts layers."),
    experts: int = typer.Option(..., min=1, help="Routed experts a layer."),
    top_k: int = typer.Option(..., min=1, help="Experts a token."),
    param: list[str] = typer.Option([], "--param", help="Generator parameter NAME=VALUE. Repeatable."),
    fit: str | None = typer.Option(None, "--fit", help="Trace whose skew 'fitted_skew' takes over."),
    seed: int = SEED,
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Make up a trace of any shape."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces import fit_skew, write_trace  # noqa: PLC0415
    from moesim.traces.generators import generators  # noqa: PLC0415

    refuse_existing([out], force)
    if fit is not None:
        if generator != "fitted_skew" or param:
            raise InputError([Problem("--fit", "goes with generator 'fitted_skew' and without --param")])
        maker: Any = fit_skew(loaded(fit), rng_for(seed, "trace/fit"))
    else:
        maker = generators.build(generator, dict(map(assignment, param)))
    made = maker.generate(tokens, layers, experts, top_k, rng_for(seed, f"trace/{generator}"))
    write_trace(out, made)
    tell("trace generate", {"tokens": made.num_tokens, "requests": made.num_requests}, [out], as_json)


@app.command()
def split(
    trace: str = TRACE,
    out: Path = typer.Option(..., "--out", help="Folder for fit.safetensors and heldout.safetensors."),
    fit_fraction: float = typer.Option(0.5, help="Share of each domain's requests in the fit part."),
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Split a trace by request into a part to fit on and a part held out."""
    from moesim.traces import write_trace  # noqa: PLC0415

    files = [out / "fit.safetensors", out / "heldout.safetensors"]
    refuse_existing(files, force)
    fit, heldout = loaded(trace).split(fit_fraction)
    for path, part in zip(files, (fit, heldout), strict=True):
        write_trace(path, part)
    sizes = {"fit_tokens": fit.num_tokens, "heldout_tokens": heldout.num_tokens}
    tell("trace split", sizes, files, as_json)


def _unit(name: str) -> str:
    for prefix, unit in _UNITS.items():
        if name.startswith(prefix):
            return unit
    return "ratio" if "_ratio" in name else "fraction"
