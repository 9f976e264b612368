"""``moesim trace merge, sample, window, by-domain, by-layer, remap``: parts and unions of traces."""

from __future__ import annotations

from pathlib import Path

import typer

from moesim.cli.output import JSON_OPTION
from moesim.cli.trace_common import FORCE, OUT, SEED, TRACE, assignment, loaded, refuse_existing, tell
from moesim.cli.trace_convert import numbers_of
from moesim.errors import InputError, Problem


def merge(
    traces: list[str] = typer.Argument(help="Traces of equal shape."),
    *,
    out: Path = OUT,
    domain: list[str] = typer.Option([], "--domain", help="Domain name for each trace. Repeatable."),
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Put the requests of several traces into one."""
    from moesim.traces import slices, write_trace  # noqa: PLC0415

    refuse_existing([out], force)
    made = slices.merge([loaded(name) for name in traces], domains=domain or None)
    write_trace(out, made)
    tell("trace merge", {"tokens": made.num_tokens, "requests": made.num_requests}, [out], as_json)


def sample(
    trace: str = TRACE,
    *,
    out: Path = OUT,
    requests: int = typer.Option(..., min=1, help="Whole requests to draw."),
    seed: int = SEED,
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Draw whole requests at random."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces import slices, write_trace  # noqa: PLC0415

    refuse_existing([out], force)
    made = slices.sample(loaded(trace), requests, rng_for(seed, "trace/sample"))
    write_trace(out, made)
    tell("trace sample", {"tokens": made.num_tokens, "requests": made.num_requests}, [out], as_json)


def window(
    trace: str = TRACE,
    *,
    out: Path = OUT,
    start: int = typer.Option(0, min=0, help="First row. [tokens]"),
    stop: int = typer.Option(..., min=1, help="Row after the last. [tokens]"),
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Cut rows out of a trace."""
    from moesim.traces import write_trace  # noqa: PLC0415

    refuse_existing([out], force)
    made = loaded(trace).window(start, stop)
    write_trace(out, made)
    tell("trace window", {"tokens": made.num_tokens, "requests": made.num_requests}, [out], as_json)


def by_domain(
    trace: str = TRACE,
    *,
    out: Path = typer.Option(..., "--out", help="Folder for one file a domain."),
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Write one trace for each kind of text."""
    from moesim.traces import slices, write_trace  # noqa: PLC0415

    parts = slices.by_domain(loaded(trace))
    unsafe = [name for name in parts if Path(name).name != name or name.startswith(".")]
    if unsafe:
        raise InputError([Problem("domains", f"{unsafe[0]!r} is no file name")])
    files = [out / f"{name}.safetensors" for name in parts]
    refuse_existing(files, force)
    for path, part in zip(files, parts.values(), strict=True):
        write_trace(path, part)
    tell("trace by-domain", {f"{n}_tokens": p.num_tokens for n, p in parts.items()}, files, as_json)


def by_layer(
    trace: str = TRACE,
    *,
    out: Path = OUT,
    layers: str = typer.Option(..., help="Model layer numbers such as 3-10 or 1,3,5."),
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Keep some layers of a trace."""
    from moesim.traces import slices, write_trace  # noqa: PLC0415

    refuse_existing([out], force)
    made = slices.by_layer(loaded(trace), numbers_of(layers, "--layers"))
    write_trace(out, made)
    tell("trace by-layer", {"tokens": made.num_tokens, "layers": made.num_layers}, [out], as_json)


def remap(
    trace: str = TRACE,
    *,
    out: Path = OUT,
    mapping: Path = typer.Option(..., "--map", help="JSON: new id of each expert, one list a layer."),
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """Renumber experts, for instance an engine's physical ids to logical ones."""
    from moesim.traces import slices, write_trace  # noqa: PLC0415
    from moesim.traces.interchange import int_array, json_value  # noqa: PLC0415

    refuse_existing([out], force)
    found = json_value(mapping)
    if isinstance(found, dict):
        found = found.get("physical_to_logical_map")
    made = slices.remap(loaded(trace), int_array(found, mapping, "map", rank=2))
    write_trace(out, made)
    tell("trace remap", {"tokens": made.num_tokens, "experts": made.num_experts}, [out], as_json)


def transform(
    name: str = typer.Argument(help="Registered transform, see 'moesim policies'."),
    trace: str = TRACE,
    *,
    out: Path = OUT,
    param: list[str] = typer.Option([], "--param", help="Parameter NAME=VALUE. Repeatable."),
    seed: int = SEED,
    force: bool = FORCE,
    as_json: bool = JSON_OPTION,
) -> None:
    """What if the router did otherwise: fewer experts, capacity, groups, pruning, expert choice."""
    from moesim.evidence import rng_for  # noqa: PLC0415
    from moesim.traces import write_trace  # noqa: PLC0415
    from moesim.traces.store import verify_trace  # noqa: PLC0415
    from moesim.traces.transforms import transforms  # noqa: PLC0415

    refuse_existing([out], force)
    policy = transforms.build(name, dict(map(assignment, param)))
    made = policy.apply(loaded(trace), rng_for(seed, f"trace/{name}"))
    verify_trace(made)
    write_trace(out, made)
    choices = int((made.expert_ids != made.empty_slot).sum())
    sizes = {
        "tokens": made.num_tokens,
        "choices_per_token_and_layer": choices / made.num_tokens / made.num_layers,
    }
    tell("trace transform", sizes, [out], as_json)


COMMANDS = (merge, sample, window, by_domain, by_layer, remap, transform)
