"""``moesim calibrate transfer``: what moving fits to an unmeasured device costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.cli.calibrate_common import own_folder
from moesim.cli.output import JSON_OPTION, emit_json, envelope, note, table
from moesim.errors import InputError

Targets = Annotated[
    list[str] | None,
    typer.Option("--device", help="Left out in turn; repeats. All imported devices by default."),
]
Families = Annotated[list[str] | None, typer.Option("--family", help="Only this family; repeats.")]
Out = Annotated[
    Path | None, typer.Option(help="File to write; calibration/transfer/leave_one_out.yaml if left out.")
]


def transfer(
    device: Targets = None, family: Families = None, out: Out = None, json: bool = JSON_OPTION
) -> None:
    """Measure what moving fits to an unmeasured device costs (needs the tables extra)."""
    from moesim.files.document import write_document  # noqa: PLC0415
    from moesim.hardware import load_device  # noqa: PLC0415
    from moesim.kernels.aiconfigurator import SYSTEMS, package_version, read_tables  # noqa: PLC0415
    from moesim.kernels.choose import TRANSFER_FILE, TRANSFER_ROOM, is_same_architecture, nearest_of  # noqa: PLC0415
    from moesim.kernels.fit.transfer import band_of, coverage, few_coverage, moved  # noqa: PLC0415
    from moesim.kernels.fit_file import fitted_devices, load_fits  # noqa: PLC0415

    measured = [name for name in SYSTEMS if name in fitted_devices()]
    rows = []
    for name in device or measured:
        target = load_device(name)
        others = [other for other in measured if other != target.name]
        foreign = [other for other in others if not is_same_architecture(target, load_device(other))]
        tables = read_tables(target.name, tuple(family or ()))
        for near in dict.fromkeys((nearest_of(target, others), nearest_of(target, foreign))):
            if near is None:
                note(f"{name}: no other fitted device is near")
                continue
            is_same = is_same_architecture(target, load_device(near))
            note(f"{name} from the fits of {near}")
            rows += moved(load_fits(near), tables, target, same_architecture=is_same)
    if not rows:
        raise InputError.at("--device", device, f"two or more fitted devices of {', '.join(SYSTEMS)}")
    targets = len({row.target for row in rows})
    evidence = (
        f"fitted: {len(rows)} kernels of {targets} devices, answered for by the nearest other device and "
        f"by that of another architecture; measured rows of aiconfigurator-core {package_version()}"
    )
    band = band_of(rows, {"all": evidence})
    path = write_document(out or own_folder(TRANSFER_ROOM) / f"{TRANSFER_FILE}.yaml", band)
    plain: list[dict[str, Any]] = [
        {
            **{n: getattr(r, n) for n in ("target", "source_device", "family", "dtype", "source", "variant")},
            **{n: getattr(r, n) for n in ("is_same_kernel", "is_same_architecture")},
            **{n: getattr(r, n) for n in ("median_ape", "few_median_ape")},
            "coverage": coverage(r, band),
            "few_coverage": few_coverage(r, band),
        }
        for r in rows
    ]
    if json:
        emit_json(envelope("calibrate transfer", rows=plain, path=str(path)))
        return
    _show(plain)
    note(f"wrote {path}")


def _show(rows: list[dict[str, Any]]) -> None:
    from statistics import median  # noqa: PLC0415

    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["target"], row["source_device"], row["family"]), []).append(row)
    shown = [
        [*key, f"{len(group)} ({sum(row['is_same_kernel'] for row in group)})"]
        + [
            f"{100 * median(row[n] for row in group):.1f} %"
            for n in ("median_ape", "coverage", "few_median_ape", "few_coverage")
        ]
        for key, group in groups.items()
    ]
    columns = [
        "target",
        "fits of",
        "family",
        "kernels (same)",
        "datasheet swap",
        "in band",
        "20 local rows",
        "in band",
    ]
    table("Fits moved to another device: medians over kernels", columns, shown, right=[3, 4, 5, 6, 7])
