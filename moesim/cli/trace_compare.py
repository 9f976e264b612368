"""``moesim trace fit`` and ``moesim trace compare``: stand-ins for recordings, and how good they are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.cli.trace_common import FORCE, SEED, TRACE, loaded, refuse_existing

if TYPE_CHECKING:
    from moesim.traces import RoutingTrace

_TOUCHED = "touched_experts"
_SHORT = {
    _TOUCHED: "touched",
    "batch_imbalance_ratio": "imbalance",
    "repeat_fraction": "repeat",
    "mutual_information_nats": "mutual",
    "lru_hit_fraction_2k": "LRU 2k",
    "lru_hit_fraction_4k": "LRU 4k",
}
TWINS = ("matched", "uniform", "zipf", "aic_power_law")


def fit(
    trace: str = TRACE,
    *,
    out: Path = typer.Option(..., "--out", help="Parameter file (.json) to write."),
    text: str = typer.Option("", "--source", help="Recording and licence; kept with the parameters."),
    model: str = typer.Option("", help="Model name to keep; default: the trace's."),
    seed: int = SEED,
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Fit the generator 'matched' to a trace; the parameters can be shipped without the trace."""
    from dataclasses import replace  # noqa: PLC0415

    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces.fit_matched import fit_matched  # noqa: PLC0415
    from moesim.traces.matched import write_parameters  # noqa: PLC0415

    refuse_existing([out], force)
    found = fit_matched(loaded(trace), rng_for(seed, "trace/fit_matched"), source=text)
    if model:
        found = replace(found, model=model)
    write_parameters(out, found)
    knobs = {name: getattr(found, name) for name in ("context_size", "context_strength", "layer_sharing")}
    if as_json:
        metrics = {name: {"value": value, "unit": ""} for name, value in knobs.items()}
        emit_json(envelope("trace fit", metrics=metrics, files=[str(out)]))
        return
    table(f"Matched parameters of {found.model}", ["", ""], [[k, v] for k, v in knobs.items()], right=(1,))
    note(f"wrote {out}; next: moesim trace generate matched --param like={out} --layers ...")


HALVES = typer.Option(False, "--halves", help="Treat every trace by itself: a line each and stand-in.")


def compare(
    trace: str = TRACE,
    others: list[str] = typer.Argument(None, help="Other traces. None: halves of the trace, and twins."),
    *,
    twin: list[str] = typer.Option(list(TWINS), help="Generators for a single trace. Repeatable."),
    halves: bool = HALVES,
    seed: int = SEED,
    as_json: bool = JSON_OPTION,
) -> None:
    """How alike traces behave; for a single trace, its held-out half against generated stand-ins.

    Stand-ins have the length of the held-out half; 'matched' is fitted to the other half. Errors are
    relative, for hit rates in percentage points; a star marks one beyond its bar.
    """
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces.compare import BARS, behaviour, errors, missed  # noqa: PLC0415

    if halves:
        _halves([trace, *(others or ())], twin, seed, as_json)
        return
    reference = loaded(trace)
    if others:
        candidates = {name: loaded(name) for name in others}
    else:
        fitted_on, reference = reference.split()
        candidates = {"fit half": fitted_on} | twins_of(twin, fitted_on, reference, seed)
    wanted = behaviour(reference, rng_for(seed, "trace/compare"))
    found = {name: behaviour(other, rng_for(seed, "trace/compare")) for name, other in candidates.items()}
    off = {name: errors(wanted, values) for name, values in found.items()}
    if as_json:
        rows: list[dict[str, Any]] = [
            {"statistic": name, "reference": wanted[name], "bar": bar.limit, "absolute": bar.absolute}
            | {other: {"value": found[other][name], "error": off[other][name]} for other in found}
            for name, bar in BARS.items()
        ]
        beyond = {name: missed(values) for name, values in off.items()}
        emit_json(envelope("trace compare", rows=rows, beyond_bar=beyond))
        return
    cells = []
    for name, bar in BARS.items():
        told = [f"{wanted[name]:.3f}", percent(bar.limit, bar.absolute).lstrip("+")]
        for other in found:
            error = off[other][name]
            star = "*" if abs(error) > bar.limit else " "
            told.append(f"{found[other][name]:.3f} {percent(error, bar.absolute)}{star}")
        cells.append([name, *told])
    title = f"{reference.num_tokens:,} tokens of {reference.info.model}, mean over layers"
    head = ["statistic", "held out" if not others else "reference", "bar", *found]
    table(title, head, cells, right=range(1, len(head)))


def _halves(traces: list[str], twin: list[str], seed: int, as_json: bool) -> None:
    """A line a trace and stand-in: its errors beside the held-out half, the largest over batch sizes."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces.compare import BARS, behaviour, errors, missed  # noqa: PLC0415

    rows: list[dict[str, Any]] = []
    for name in traces:
        note(name)
        fitted_on, reference = loaded(name).split()
        wanted = behaviour(reference, rng_for(seed, "trace/compare"))
        drawn = {"fit half": fitted_on} | twins_of(twin, fitted_on, reference, seed)
        for other, made in drawn.items():
            off = errors(wanted, behaviour(made, rng_for(seed, "trace/compare")))
            touched = max((v for n, v in off.items() if n.startswith(_TOUCHED)), key=abs)
            shown = {n: v for n, v in off.items() if not n.startswith(_TOUCHED)}
            rows.append(
                {"trace": Path(name).stem, "stand_in": other, "tokens": reference.num_tokens}
                | {_TOUCHED: touched, **shown}
                | {"beyond_bar": missed(off)}
            )
    if as_json:
        emit_json(envelope("trace compare", rows=rows))
        return
    limits = {_TOUCHED: BARS[f"{_TOUCHED}_1"]} | BARS
    columns = [n for n in rows[0] if n in limits]
    cells = []
    for row in rows:
        marks = [
            percent(row[n], limits[n].absolute) + ("*" if abs(row[n]) > limits[n].limit else " ")
            for n in columns
        ]
        cells.append([row["trace"], row["stand_in"], *marks])
    told = {n: f"{_SHORT[n]} {percent(limits[n].limit, limits[n].absolute).lstrip('+')}" for n in columns}
    table(
        "Errors beside the held-out half; a star is beyond the bar in the heading",
        ["trace", "stand-in", *told.values()],
        cells,
        right=range(2, 2 + len(columns)),
    )


def twins_of(
    names: list[str], fitted_on: RoutingTrace, reference: RoutingTrace, seed: int
) -> dict[str, RoutingTrace]:
    """Generated traces of the reference's shape and length, by generator."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces.fit_matched import fit_matched  # noqa: PLC0415
    from moesim.traces.generators import generators  # noqa: PLC0415
    from moesim.traces.matched import matched_trace  # noqa: PLC0415

    shape = (reference.num_tokens, reference.num_layers, reference.num_experts, reference.top_k)
    made = {}
    for name in names:
        rng = rng_for(seed, f"trace/{name}")
        if name == "matched":
            made[name] = matched_trace(fit_matched(fitted_on, rng), *shape, rng)
        else:
            made[name] = generators.build(name, field="--twin").generate(*shape, rng)
    return made


def percent(error: float, absolute: bool) -> str:
    """``+1.2%`` or ``+1.2 pt``."""
    return f"{100 * error:+.1f}{' pt' if absolute else '%'}"
