"""``moesim run``: one scenario to numbers, and with ``--out`` to a folder of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moesim.cli.output import JSON_OPTION, emit_json, metric_rows, note, refuse_overwriting, table
from moesim.cli.run_command import DEVICE_OPTION, FROM_OPTION, VERSION_OPTION, resolved_from
from moesim.errors import InputError
from moesim.units import fmt_bytes, fmt_seconds, fmt_si

if TYPE_CHECKING:
    from moesim.scenario.run import AnyOutcome

ScenarioArgument = Annotated[str, typer.Argument(help="Scenario file, or the name of a shipped one.")]
OptionalScenario = Annotated[
    str | None, typer.Argument(help="Scenario file, or the name of a shipped one; or use --from.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field of the resolved scenario; repeats."),
]
OutputFormat = Literal["moesim", "vllm"]
SeedOption = Annotated[int | None, typer.Option(help="Short for --set seed=N.")]


def command(  # noqa: PLR0917 - options of the command line
    scenario: OptionalScenario = None,
    sets: SetOption = None,
    json: bool = JSON_OPTION,
    launch: Annotated[str | None, FROM_OPTION] = None,
    device: Annotated[str | None, DEVICE_OPTION] = None,
    engine_version: Annotated[str, VERSION_OPTION] = "",
    out: Annotated[
        Path | None, typer.Option(help="Write run.json, report, figures and timeline here.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite results in --out.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate and print the resolved scenario.")
    ] = False,
    seed: SeedOption = None,
    no_timing: Annotated[bool, typer.Option("--no-timing", help="Leave wall times out of the JSON.")] = False,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="Fields of --json: moesim's, or vllm bench serve's.")
    ] = "moesim",
) -> None:
    """Simulate one scenario."""
    from time import perf_counter  # noqa: PLC0415

    from moesim.cli.progress import counting  # noqa: PLC0415
    from moesim.files import write_json  # noqa: PLC0415
    from moesim.scenario.run import run  # noqa: PLC0415

    refuse_overwriting(out, "run.json", force=force)
    started = perf_counter()
    resolved = resolved_from(scenario, launch, device, engine_version, overrides(sets, seed))
    if dry_run:
        dry(resolved, json=json)
        return
    with counting("requests served") as served:
        outcome = run(resolved, progress=served)
    exported = _exported(outcome, output_format)
    seconds = perf_counter() - started
    timing = None if no_timing else {"wall_s": round(seconds, 3)}
    if out is not None:
        written = write_run(outcome, out, timing)
        if exported is not None:
            written.append(write_json(out / "vllm.json", exported))
        note("wrote " + ", ".join(str(path) for path in written))
    if json and exported is not None:
        emit_json(exported)
        return
    if json:
        emit_json(outcome.result.document(with_views=False) | ({"timing": timing} if timing else {}))
        return
    show(outcome)
    if out is None:
        note("add --out DIR for the report, figures and timeline")


def _exported(outcome: AnyOutcome, output_format: OutputFormat) -> dict[str, Any] | None:
    """The run in another tool's fields; None where moesim's are asked for."""
    from moesim.scenario.serve import ServingOutcome  # noqa: PLC0415

    if output_format == "moesim":
        return None
    if not isinstance(outcome, ServingOutcome):
        raise InputError.at(
            "--format", output_format, "moesim: only a run of question serve has vllm's fields"
        )
    return outcome.vllm()


def overrides(sets: list[str] | None, seed: int | None) -> list[str]:
    """``--set`` values with ``--seed`` as the last."""
    return [*(sets or []), *([f"seed={seed}"] if seed is not None else [])]


def dry(resolved: Any, *, json: bool) -> None:
    """Resolved scenario and memory fit, without simulating."""
    from moesim.scenario.run import built_of  # noqa: PLC0415

    built = built_of(resolved)
    if json:
        emit_json({"schema_version": 1, "command": "run", "scenario": resolved.tree.data})
        return
    rows = [
        [".".join(map(str, keys)), value, resolved.tree.where(keys)]
        for keys, value in resolved.tree.leaves()
        if "sources" not in keys
    ]
    table(f"{built.scenario.name}, resolved", ["field", "value", "set at"], rows)


def show(outcome: AnyOutcome) -> None:
    """Tables of a result."""
    result = outcome.result
    document = result.document(with_views=False)
    typer.echo(result.title)
    typer.echo(result.answer)
    table("Metrics", ["metric", "value", "80 % band"], metric_rows(document["metrics"]), right=[1])
    rows = [
        [s.name, fmt_seconds(s.seconds), f"{100 * s.fraction:.1f} %", s.evidence] for s in result.breakdown
    ]
    table("Time on the critical path", ["operation", "time", "share", "evidence"], rows, right=[1, 2])
    changes = [[s.label, f"{100 * s.change_fraction:+.1f} %", s.knob] for s in result.sensitivity]
    if changes:
        table(f"What moves {result.sensitivity[0].metric}", ["change", "effect", "knob"], changes, right=[1])
    _show_network(result.views)
    for warning in result.warnings:
        note(f"note: {warning}")


def _show_network(views: Mapping[str, Any]) -> None:
    """Algorithms taken, and the links that are busy longest."""
    chosen = views.get("algorithms", [])
    rows = [[r["what"], r["algorithm"], r["asked"], fmt_seconds(r["seconds"]), r["evidence"]] for r in chosen]
    if rows:
        table("Communication", ["what", "algorithm", "asked for", "mean time", "evidence"], rows, right=[3])
    links = views.get("links")
    if links:
        rows = [
            [r["link"], fmt_bytes(r["bytes"]), fmt_si(r["bytes_per_s"], "B/s"), fmt_seconds(r["seconds"])]
            for r in links["busiest"]
        ]
        table(
            "Busiest links, dispatch and combine of a step",
            ["link", "bytes", "rate", "busy"],
            rows,
            right=[1, 2, 3],
        )
        if links["sound_busiest_s"] is not None:
            note(f"with every part sound the busiest link is busy {fmt_seconds(links['sound_busiest_s'])}")
    crowd = views.get("crowd")
    if crowd:
        rows = [
            [
                row["link"],
                f"{100 * row['own_fraction']:.1f} %",
                f"{100 * row['others_fraction']:.1f} %",
                fmt_seconds(row["lost_s"]),
            ]
            for row in crowd["held_back"]
        ]
        heads = ["link", "used by the step", "by others", "waited for it"]
        table("Links shared with others, one step", heads, rows, right=[1, 2, 3])
        alone, beside = fmt_seconds(crowd["alone_s"]), fmt_seconds(crowd["beside_s"])
        note(f"a step takes {beside} beside the traffic of others, {alone} alone")


def write_run(outcome: AnyOutcome, folder: Path, timing: dict[str, Any] | None = None) -> list[Path]:
    """Everything a run leaves behind, in ``folder``; the report comes first."""
    from moesim.report.page import write_page  # noqa: PLC0415

    document, figures, written = _write_parts(outcome, folder, timing)
    return [write_page([document], [figures], folder / "report.html", title=document["title"]), *written]


def write_results(outcomes: Sequence[AnyOutcome], folder: Path, *, title: str) -> list[Path]:
    """One report over several runs, each with its files in a folder of its name; the report comes first."""
    from moesim.report.page import write_page  # noqa: PLC0415

    parts = [_write_parts(outcome, folder / outcome.built.scenario.name) for outcome in outcomes]
    documents, figures, written = zip(*parts, strict=True)
    page = write_page(documents, figures, folder / "report.html", title=title)
    return [page, *(path for paths in written for path in paths)]


def _write_parts(
    outcome: AnyOutcome, folder: Path, timing: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Any], list[Path]]:
    """Document and figures of a run beside its run.json, its PNG files and its timeline."""
    from moesim.files import write_json  # noqa: PLC0415
    from moesim.report.chrome_trace import excerpt, write_timeline  # noqa: PLC0415
    from moesim.report.figures import drawn  # noqa: PLC0415
    from moesim.report.style import save_pngs  # noqa: PLC0415

    simulated = outcome.simulated
    document = outcome.result.document()
    if simulated is not None:
        document["views"]["timeline"] = excerpt(simulated.program, simulated.recorded)
    written = [write_json(folder / "run.json", document | ({"timing": timing} if timing else {}))]
    figures = drawn(document)
    written += save_pngs(figures, folder)
    if simulated is not None:
        written.append(write_timeline(simulated.program, simulated.recorded, folder / "timeline.json.gz"))
    return document, figures, written
