"""``moesim profile``: which machines are described, what a description says, and whether it holds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.errors import InputError
from moesim.units import fmt_quantity

if TYPE_CHECKING:
    from moesim.hardware import Profile
    from moesim.hardware.audit import FieldOrigin

app = typer.Typer(
    help="List, show and check hardware profiles.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


def _names() -> list[str]:
    from moesim.hardware import profile_names  # noqa: PLC0415

    return profile_names()


Kind = Annotated[str | None, typer.Option(help="Only this kind: device, node or cluster.")]
Name = Annotated[str, typer.Argument(help="Name or path of a profile.", autocompletion=_names)]
Names = Annotated[
    list[str] | None,
    typer.Argument(help="Names or paths; all that are found if left out.", autocompletion=_names),
]


@app.command("list")
def list_profiles(kind: Kind = None, json: bool = JSON_OPTION) -> None:
    """Profiles that can be named, with their main figures."""
    from moesim.hardware.load import MODELS, read_profile  # noqa: PLC0415

    kinds: list[str] = list(MODELS)
    if kind is not None and kind not in kinds:
        raise InputError.at("--kind", kind, ", ".join(kinds))
    found = {name: read_profile(name) for name in _names()}
    rows = [{"name": name, "kind": str(p.kind), "summary": _summary(p)} for name, p in found.items()]
    rows = sorted((r for r in rows if kind in (None, r["kind"])), key=lambda r: kinds.index(r["kind"]))
    if json:
        emit_json(envelope("profile list", rows=rows))
        return
    table("Hardware profiles", ["kind", "name", "what"], [[r["kind"], r["name"], r["summary"]] for r in rows])


@app.command()
def show(
    name: Name,
    draw: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Draw the links of a node or cluster.")
    ] = None,
    json: bool = JSON_OPTION,
) -> None:
    """Every field of a profile with its unit, evidence grade and source; links of a cluster."""
    from moesim.hardware.audit import field_origins  # noqa: PLC0415
    from moesim.hardware.load import read_profile  # noqa: PLC0415

    profile = read_profile(name)
    if profile.problems:
        raise InputError(profile.problems, source=profile.tree.source or name)
    rows = field_origins(profile.tree)
    links = [] if profile.kind == "device" else _links(name, draw)
    if json:
        shown = [asdict(row) for row in rows]
        emit_json(envelope("profile show", name=name, kind=profile.kind, rows=shown, links=links))
        return
    columns = ["field", "value", "grade", "source"]
    table(
        f"{profile.kind} {name}", columns, [[r.path, _shown(r), r.grade, r.source] for r in rows], right=[1]
    )
    if links:
        heads = ["links", "number", "rate, one direction", "first"]
        lines = [
            [r["label"], f"{r['count']:,}", fmt_quantity(r["bytes_per_s"], "bytes_per_s"), r["first"]]
            for r in links
        ]
        table(f"Links of {name}", heads, lines, right=[1, 2])
    if draw is not None:
        note(f"wrote {draw}")


def _links(name: str, draw: Path | None) -> list[dict[str, Any]]:
    """Kinds of links of a node or cluster; a picture where asked for."""
    from moesim.hardware import load_cluster  # noqa: PLC0415
    from moesim.network.topology import Topology  # noqa: PLC0415
    from moesim.scenario.link_views import LABELS  # noqa: PLC0415

    topology = Topology.of(load_cluster(name))
    if draw is not None and topology.link_names:
        from moesim.report.style import save_png  # noqa: PLC0415
        from moesim.report.topology_figure import topology_figure  # noqa: PLC0415

        save_png(topology_figure(topology, name), draw)
    return [
        {
            "label": LABELS[block],
            "count": place.stop - place.start,
            "bytes_per_s": float(topology.capacity_bytes_per_s[place].min()),
            "first": topology.link_names[place.start],
        }
        for block, place in topology.blocks.items()
        if place.stop > place.start
    ]


@app.command()
def check(names: Names = None, json: bool = JSON_OPTION) -> None:
    """Validate profiles: shape, sources, name, plausibility. Exit code 3 if anything is wrong."""
    from moesim.hardware.audit import profile_problems  # noqa: PLC0415

    checked = names or _names()
    found = {name: profile_problems(name) for name in checked}
    problems = list(dict.fromkeys(problem for group in found.values() for problem in group))
    if json:
        rows = [{"name": name, "problems": [asdict(p) for p in group]} for name, group in found.items()]
        summary = {"n": len(checked), "n_wrong": sum(map(bool, found.values())), "n_problems": len(problems)}
        emit_json(envelope("profile check", rows=rows, summary=summary))
    if problems:
        raise InputError(problems, source=checked[0] if len(checked) == 1 else "hardware profiles")
    if not json:
        note(f"{len(checked)} profile{'s' if len(checked) != 1 else ''} checked, nothing wrong")


def _shown(row: FieldOrigin) -> str:
    if not row.unit or isinstance(row.value, bool):
        return str(row.value)
    return fmt_quantity(row.value, row.unit)


def _summary(profile: Profile) -> str:
    """Main figures in one line."""
    from moesim.files import validated  # noqa: PLC0415
    from moesim.hardware import Cluster, Device, Node  # noqa: PLC0415
    from moesim.hardware.load import MODELS  # noqa: PLC0415

    try:
        described = None if profile.problems else validated(MODELS[profile.kind], profile.tree)
    except InputError:
        described = None
    if isinstance(described, Cluster):
        return f"{described.num_nodes} x {described.node.name}, {described.scale_out.kind}"
    if isinstance(described, Node):
        return f"{described.num_devices} x {described.device.name}, {described.scale_up_kind}"
    if not isinstance(described, Device):
        return "not usable: see moesim profile check"
    memory = described.main_memory
    dtype, peak = next(iter(described.peak_flops_per_s.items()))
    rate = fmt_quantity(memory.bandwidth_bytes_per_s, "bytes_per_s")
    capacity = fmt_quantity(memory.capacity_bytes, "bytes")
    return f"{described.kind}, {fmt_quantity(peak, 'flops_per_s')} {dtype}, {capacity} at {rate}"
