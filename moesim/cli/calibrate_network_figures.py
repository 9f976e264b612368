"""Pictures and pooled errors of network fits against the public tables they were made from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moesim.cli.output import note

if TYPE_CHECKING:
    from moesim.network.fit.tables import Table
    from moesim.network.fit_file import NetworkFits


def tables_of(device: str) -> tuple[list[Table], list[Table]]:
    """Collectives and exchanges of a device in the installed package."""
    from moesim.kernels.aiconfigurator import SYSTEMS, data_folder, package_version  # noqa: PLC0415
    from moesim.network.fit.tables import collective_tables, exchange_tables  # noqa: PLC0415

    folder = data_folder() / SYSTEMS[device]
    version = package_version()
    return collective_tables(folder, device, version), exchange_tables(folder, device, version)


def write_figures(fits: NetworkFits, folder: Path) -> None:
    """``DEVICE_collectives.png`` and ``DEVICE_exchanges.png``: measured points, fitted lines."""
    from moesim.report.curve_figures import curve_figure  # noqa: PLC0415
    from moesim.report.style import save_png  # noqa: PLC0415

    collectives, exchanges = tables_of(fits.device)
    pictures = {
        "collectives": [_collective_panel(fits, tables) for tables in _by_operation(collectives).values()],
        "exchanges": [panel for table in exchanges if (panel := _exchange_panel(fits, table)) is not None],
    }
    for name, panels in pictures.items():
        if panels:
            heading = f"{fits.device}: measured (points) and fitted (lines) {name}"
            note(f"wrote {save_png(curve_figure(heading, panels), folder / f'{fits.device}_{name}.png')}")


def _by_operation(tables: list[Table]) -> dict[tuple[str, str], list[Table]]:
    groups: dict[tuple[str, str], list[Table]] = {}
    for table in tables:
        if not table.source.endswith("_eager"):
            groups.setdefault((table.family, table.source), []).append(table)
    return groups


def _collective_panel(fits: NetworkFits, tables: list[Table]) -> dict[str, Any]:
    from moesim.network.curves import collective_s  # noqa: PLC0415
    from moesim.report.curve_figures import spread  # noqa: PLC0415

    first = tables[0]
    fit = fits.collective(first.family, first.source)
    assert fit is not None  # made from these tables
    curves = []
    for ranks in sorted(set(first.columns["num_ranks"].tolist())):
        own = first.columns["num_ranks"] == ranks
        measured = first.columns["payload_bytes"][own]
        sizes = spread(measured)
        seconds, _ = collective_s(fit, sizes, int(ranks), first.dtype)
        curves.append(_curve(f"{ranks:.0f} ranks", sizes, seconds, measured, first.seconds[own]))
    name = f"{first.family.replace('_', '-')} {first.source}"
    return {"title": name, "error": _error(fit.held_out.median_ape), "unit": "bytes", "curves": curves}


def _exchange_panel(fits: NetworkFits, table: Table) -> dict[str, Any] | None:
    """Time against tokens for the commonest shape: a curve for each number of SMs, or of ranks."""
    from moesim.network.fit.exchanges import predicted_s  # noqa: PLC0415

    many = bool((table.columns["num_domains"] > 1).any())
    fit = fits.exchange(table.family, table.dtype, "domains" if many else "ranks")
    if fit is None:
        return None
    seconds = predicted_s(fit, table, fits.scale_up_bytes_per_s, fits.nic_bytes_per_s)
    shape = np.stack([table.columns[n] for n in ("row_bytes", "num_experts", "copies")])
    shape[2] /= table.columns["tokens"]
    values, counts = np.unique(shape, axis=1, return_counts=True)
    common = (shape == values[:, [int(counts.argmax())]]).all(axis=0)
    by = "num_ranks" if many or len(np.unique(table.columns["sms"])) == 1 else "sms"
    if many and len(np.unique(table.columns["sms"])) > 1:
        common &= table.columns["sms"] == np.max(table.columns["sms"])
    levels = np.unique(table.columns[by][common])
    curves = []
    for level in levels:
        own = common & (table.columns[by] == level)
        order = np.argsort(table.columns["tokens"][own], kind="stable")
        tokens = table.columns["tokens"][own][order]
        label = f"{level:.0f} {'ranks' if by == 'num_ranks' else 'SMs'}"
        curves.append(_curve(label, tokens, seconds[own][order], tokens, table.seconds[own][order]))
    where = " between nodes" if many else ""
    name = f"{table.family.replace('_', ' ')} {table.dtype.replace('_', ' ')}{where}"
    return {"title": name, "error": _error(fit.held_out.median_ape), "unit": "tokens", "curves": curves}


def _curve(label: str, x: Any, y: Any, measured_x: Any, measured_y: Any) -> dict[str, Any]:
    return {"label": label, "x": x, "y": y, "measured_x": measured_x, "measured_y": measured_y}


def _error(fraction: float) -> str:
    return f"held-out error {100 * fraction:.1f} %"


def pooled_errors(devices: list[str]) -> list[dict[str, Any]]:
    """Errors over all held-out rows of all devices together, by library and decade of size."""
    from moesim.network.fit.collectives import left_out_rows  # noqa: PLC0415

    found: dict[tuple[str, str, str], list[float]] = {}
    for device in devices:
        for library, split, size, error in left_out_rows(tables_of(device)[0]):
            family = "nccl" if library == "nccl" else "custom all-reduce"
            for decade in (f"1e{int(np.floor(np.log10(size)))}", "all"):
                found.setdefault((family, split, decade), []).append(abs(float(np.expm1(error))))
        note(f"{device}: held out again")
    return [
        {
            "family": family,
            "left_out": split,
            "decade": decade,
            "num_rows": len(errors),
            "median_ape": float(np.median(errors)),
            "p90_ape": float(np.quantile(errors, 0.9)),
        }
        for (family, split, decade), errors in sorted(found.items())
    ]
