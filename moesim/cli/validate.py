"""``moesim validate``: published claims and measured runs beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.cli.progress import naming
from moesim.errors import CheckFailed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any

    from moesim.validate.claims import Claim

Subject = Annotated[
    str,
    typer.Argument(
        metavar="SET|POINTS",
        help="A set of published claims (`list` names them), a CSV file of measured serving runs, or a "
        "folder of runs measured request by request.",
    ),
]
Conditions = Annotated[
    list[str] | None,
    typer.Option(
        "--require", metavar="CONDITION", help="As tpot_median_ape<0.12; exit code 5 if missed. Repeats."
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(help="Write the page and the rows here; of measured runs also a journal to resume from."),
]
Jobs = Annotated[int, typer.Option(min=0, help="Processes for measured runs; 0: one a core.")]
LeaveOneOut = Annotated[
    bool,
    typer.Option("--leave-one-out", help="Also fit host overheads without each model and show its error."),
]
NoTiming = Annotated[bool, typer.Option("--no-timing", help="Leave wall times out of the JSON.")]
Require = Annotated[bool, typer.Option("--require-all", help="Exit code 5 if a claim is missed.")]
Seed = Annotated[int, typer.Option(help="Seed of everything random.")]


def command(
    subject: Subject = "list",
    *,
    require_all: Require = False,
    require: Conditions = None,
    out: Out = None,
    jobs: Jobs = 0,
    seed: Seed = 0,
    leave_one_out: LeaveOneOut = False,
    no_timing: NoTiming = False,
    json: bool = JSON_OPTION,
) -> None:
    """Published claims, or measured serving runs, beside ours."""
    if subject.endswith(".csv") or Path(subject).is_dir():
        from moesim.cli.validate_serving import validate_measured  # noqa: PLC0415

        validate_measured(
            Path(subject),
            require=require or (),
            out=out,
            jobs=jobs,
            json=json,
            no_timing=no_timing,
            leave_one_out=leave_one_out,
        )
        return
    from moesim.validate.claims import asks, claim_sets, claims_of, plain, summary  # noqa: PLC0415

    if subject == "list":
        rows = [[name, asks(name)] for name in claim_sets()]
        if json:
            emit_json(envelope("validate", sets=dict(rows)))
        else:
            table("Sets of published claims", ["set", "what it compares"], rows)
        return
    with naming(f"validate {subject}") as doing:
        claims = claims_of(subject, seed=seed, progress=doing)
    document = envelope("validate", set=subject, rows=plain(claims), summary=summary(claims))
    if json:
        emit_json(document)
    else:
        _show(document, claims)
    if out is not None:
        _write(document, claims, out)
    missed = [claim.name for claim in claims if not claim.within]
    if require_all and missed:
        message = f"{len(missed)} of {len(claims)} claims of {subject} missed: {'; '.join(missed)}"
        raise CheckFailed(message)


def _show(document: Mapping[str, Any], claims: Sequence[Claim]) -> None:
    """A table a source; what rows say besides stands once, below all of them."""
    columns = ["claim", "published", "ours", "unit", "error", "tolerance", "within", "note"]
    by_source: dict[str, list[list[str]]] = {}
    notes: dict[str, str] = {"": ""}
    for claim, (*cells, source, said) in _cells(claims):
        number = notes.setdefault(said, str(len(notes)))
        by_source.setdefault(source, []).append([*cells, "yes" if claim.within else "NO", number])
    for source, rows in by_source.items():
        table(source, columns, rows, right=[1, 2, 4, 5, 7])
    for text, number in list(notes.items())[1:]:
        typer.echo(f"note {number}: {text}")
    counts = document["summary"]
    if "groups" in counts:
        _show_groups(counts["groups"])
    typer.echo(f"{counts['n_within']} of {counts['n']} claims of {document['set']} within their tolerance")


def _write(document: Mapping[str, Any], claims: Sequence[Claim], out: Path) -> None:
    """Page, picture and rows."""
    from moesim.cli.validate_serving import DOCUMENT, PAGE  # noqa: PLC0415
    from moesim.files import write_json  # noqa: PLC0415
    from moesim.report.claims_page import write_claims_figure, write_claims_page  # noqa: PLC0415

    page = write_claims_page(document, out / PAGE, [cells for _, cells in _cells(claims)])
    figure = write_claims_figure(document, out / Path(PAGE).with_suffix(".png"))
    note(f"wrote {page}, {figure}, {write_json(out / DOCUMENT, document)}")


def _cells(claims: Sequence[Claim]) -> Iterator[tuple[Claim, list[str]]]:
    """Every claim and its texts: name, published, ours, unit, error, tolerance, source, note."""
    for claim in claims:
        error, tolerance = _distance(claim.error, claim), _distance(claim.tolerance, claim).lstrip("+")
        numbers = [f"{claim.published:.6g}", f"{claim.simulated:.6g}", claim.unit, error, tolerance]
        yield claim, [claim.name, *numbers, claim.source, claim.note]


def _show_groups(groups: Sequence[dict[str, Any]]) -> None:
    """Counts and median error of each group, and of all others of its kind."""
    rows = [
        [group["name"], str(group["n"]), str(group["n_within"])]
        + [_percent(group["median_ape"]), _percent(group["median_ape_without"])]
        for group in groups
    ]
    columns = ["group", "claims", "within", "median error", "median of the others"]
    table(
        "By group; nothing is fitted, so leaving one out changes only the median",
        columns,
        rows,
        right=[1, 2, 3, 4],
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _distance(value: float, claim: Claim) -> str:
    return f"{value:+.3g}" if claim.absolute else f"{100 * value:+.1f} %"
