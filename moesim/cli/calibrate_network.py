"""``moesim calibrate network``: fits of collectives and exchanges, and their errors on rows not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moesim.cli.calibrate_common import own_folder
from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.errors import CheckFailed

if TYPE_CHECKING:
    from moesim.evidence import Score
    from moesim.network.fit_file import NetworkFits

Devices = Annotated[list[str] | None, typer.Argument(help="Devices with network fits; all if left out.")]
Refit = Annotated[
    bool, typer.Option("--refit", help="Fit the public tables again first (needs the tables extra).")
]
Decades = Annotated[bool, typer.Option("--decades", help="Errors by power of ten of the message size.")]
Pooled = Annotated[
    bool,
    typer.Option("--pooled", help="Errors over the rows of all devices together (needs the tables extra)."),
]
Figures = Annotated[
    Path | None,
    typer.Option(help="Folder for pictures of measured and fitted times (needs the tables extra)."),
]
Within = Annotated[
    float | None, typer.Option(help="Exit code 5 if a held-out median error is above this fraction.")
]


def network(
    device: Devices = None,
    refit: Refit = False,
    decades: Decades = False,
    pooled: Pooled = False,
    figures: Figures = None,
    within: Within = None,
    json: bool = JSON_OPTION,
) -> None:
    """Curves of collectives and forms of expert-parallel exchanges: errors on rows that no fit saw."""
    from moesim.network.fit_file import fitted_fabrics, network_fits  # noqa: PLC0415

    if refit:
        _refit(device)
        network_fits.cache_clear()
    names = device or fitted_fabrics()
    found = [fits for name in names if (fits := _known(name)) is not None]
    rows = [row for fits in found for row in _rows(fits)]
    by_decade = _decades(found)
    together: list[dict[str, Any]] = []
    if pooled or figures is not None:
        from moesim.cli.calibrate_network_figures import pooled_errors, write_figures  # noqa: PLC0415

        together = pooled_errors([fits.device for fits in found]) if pooled else []
        for fits in found:
            if figures is not None:
                write_figures(fits, figures)
    summary = [_summary(family, group) for family, group in _groups(rows).items()]
    if json:
        emit_json(
            envelope("calibrate network", rows=rows, decades=by_decade, pooled=together, summary=summary)
        )
    else:
        _show(rows, summary, by_decade if decades else [])
        _show_pooled(together)
    missed = [row for row in rows if within is not None and row["median_ape"] > within]
    if missed:
        names_ = "; ".join(f"{r['device']} {r['what']} {_percent(r['median_ape'])}" for r in missed)
        message = f"held-out median error above {_percent(within or 0.0)}: {names_}"
        raise CheckFailed(message)


def _known(name: str) -> NetworkFits | None:
    from moesim.errors import InputError  # noqa: PLC0415
    from moesim.network.fit_file import fitted_fabrics, network_fits  # noqa: PLC0415

    found = network_fits(name)
    if found is None:
        raise InputError.at("DEVICE", name, f"one with network fits, {', '.join(fitted_fabrics())}")
    return found


def _refit(devices: list[str] | None) -> None:
    from moesim.kernels.aiconfigurator import SYSTEMS, data_folder, package_version  # noqa: PLC0415
    from moesim.network.fit.device import NODES, fit_package  # noqa: PLC0415
    from moesim.network.fit_file import ROOM, write_network_fits  # noqa: PLC0415

    for name in devices or NODES:
        if name not in SYSTEMS:
            note(f"{name}: not in the package")
            continue
        fits = fit_package(data_folder() / SYSTEMS[name], name, package_version(), note)
        note(f"wrote {write_network_fits(own_folder(ROOM) / f'{name}.yaml', fits)}")


def _rows(fits: NetworkFits) -> list[dict[str, Any]]:
    """One row a fit and kind of held-out rows."""
    rows: list[dict[str, Any]] = []
    for curve in fits.collectives:
        family = _family(curve.library)
        what = f"{curve.collective} {curve.library}"
        for split, errors in (("sizes", curve.held_out), ("sizes of all datatypes", curve.sizes_left_out)):
            rows.append(_row(fits, family, what, split, errors))
    for form in fits.exchanges:
        family = f"{form.kernel} between {form.between}" if form.between == "domains" else form.kernel
        what = f"{form.kernel} {form.phase}"
        rows.append(_row(fits, family, what, "rows", form.held_out))
        rows += [_row(fits, family, what, f"EP{n}", e) for n, e in form.ranks_left_out.items()]
    return rows


def _family(library: str) -> str:
    """NCCL and gloo by name; the engines' own kernels, which only reduce, together."""
    return library if library in {"nccl", "gloo"} else "custom all-reduce"


def _row(fits: NetworkFits, family: str, what: str, split: str, errors: Score) -> dict[str, Any]:
    return {"device": fits.device, "family": family, "what": what, "left_out": split} | errors.model_dump()


def _groups(rows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        split = "one EP size" if row["left_out"].startswith("EP") else row["left_out"]
        groups.setdefault((row["family"], split), []).append(row)
    return groups


def _summary(key: tuple[str, str], rows: list[dict[str, Any]]) -> dict[str, Any]:
    from statistics import median  # noqa: PLC0415

    return {
        "family": key[0],
        "left_out": key[1],
        "fits": len(rows),
        "median_ape": median(row["median_ape"] for row in rows),
        "p90_ape": median(row["p90_ape"] for row in rows),
        "worst_median_ape": max(row["median_ape"] for row in rows),
        "coverage": median(row["coverage"] for row in rows),
    }


def _decades(found: list[NetworkFits]) -> list[dict[str, Any]]:
    """Errors of all curves of a family by decade, weighted by rows: medians of medians would flatter."""
    from moesim.network.fit_file import pooled  # noqa: PLC0415

    rows = []
    for family in ("nccl", "custom all-reduce"):
        own = [curve for fits in found for curve in fits.collectives if _family(curve.library) == family]
        for name, split in (("sizes", "decades"), ("sizes of all datatypes", "decades_left_out")):
            for decade, errors in pooled([getattr(curve, split) for curve in own]).items():
                rows.append({"family": family, "left_out": name, "decade": decade} | errors)
    return rows


def _show(rows: list[dict[str, Any]], summary: list[dict[str, Any]], decades: list[dict[str, Any]]) -> None:
    columns = ["device", "family", "what", "left out", "rows", "error", "P90", "bias", "in band"]
    shown = [
        [r["device"], r["family"], r["what"], r["left_out"], f"{r['num_rows']:,}"]
        + [_percent(r["median_ape"]), _percent(r["p90_ape"]), f"{100 * r['bias']:+.1f} %"]
        + [_percent(r["coverage"])]
        for r in rows
    ]
    table("Network fits on rows that no fit saw", columns, shown, right=[4, 5, 6, 7, 8])
    if decades:
        names = ["family", "left out", "size", "curves", "rows", "error", "P90", "worst curve"]
        lines = [
            [r["family"], r["left_out"], f"{r['decade']} B", str(r["curves"]), f"{r['num_rows']:,}"]
            + [_percent(r[n]) for n in ("median_ape", "p90_ape", "worst_median_ape")]
            for r in decades
        ]
        table("By decade of size, means over curves weighted by rows", names, lines, right=[3, 4, 5, 6, 7])
    head = ["family", "left out", "fits", "median error", "median P90", "worst median", "in band"]
    lines = [
        [r["family"], r["left_out"], str(r["fits"])]
        + [_percent(r[n]) for n in ("median_ape", "p90_ape", "worst_median_ape", "coverage")]
        for r in summary
    ]
    table("Medians over fits", head, lines, right=[2, 3, 4, 5, 6])


def _show_pooled(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    columns = ["family", "left out", "size", "rows", "error", "P90"]
    shown = [
        [r["family"], r["left_out"], r["decade"], f"{r['num_rows']:,}"]
        + [_percent(r["median_ape"]), _percent(r["p90_ape"])]
        for r in rows
    ]
    table("All devices together, by power of ten of the bytes", columns, shown, right=[3, 4, 5])


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
