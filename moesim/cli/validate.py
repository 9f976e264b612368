"""``moesim validate``: published claims and measured runs beside ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.errors import CheckFailed

if TYPE_CHECKING:
    from collections.abc import Sequence
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
Out = Annotated[Path | None, typer.Option(help="Write the page, the rows and a journal to resume from here.")]
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
    from moesim.validate.claims import claim_sets, claims_of, plain, summary  # noqa: PLC0415

    if subject == "list":
        table("Sets of published claims", ["set"], [[name] for name in claim_sets()])
        return
    claims = claims_of(subject, seed=seed, progress=note)
    if json:
        emit_json(envelope("validate", set=subject, rows=plain(claims), summary=summary(claims)))
    else:
        _show(subject, claims)
    missed = [claim.name for claim in claims if not claim.within]
    if require_all and missed:
        message = f"{len(missed)} of {len(claims)} claims of {subject} missed: {'; '.join(missed)}"
        raise CheckFailed(message)


def _show(subject: str, claims: Sequence[Claim]) -> None:
    from moesim.validate.claims import summary  # noqa: PLC0415

    rows = [
        [claim.name, f"{claim.published:.6g}", f"{claim.simulated:.6g}", claim.unit]
        + [_distance(claim.error, claim), _distance(claim.tolerance, claim).lstrip("+")]
        + ["yes" if claim.within else "NO", claim.source, claim.note]
        for claim in claims
    ]
    columns = ["claim", "published", "ours", "unit", "error", "tolerance", "within", "source", "note"]
    table(f"Published claims: {subject}", columns, rows, right=[1, 2, 4, 5])
    counts = summary(claims)
    if "groups" in counts:
        _show_groups(counts["groups"])
    typer.echo(f"{counts['n_within']} of {counts['n']} within their tolerance")


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
