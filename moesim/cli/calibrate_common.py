"""What the calibration commands share: their folders, and how fits are shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from moesim.cli.output import emit_json, envelope, note, table

if TYPE_CHECKING:
    from moesim.evidence import Score
    from moesim.kernels.fit_file import DeviceFits, Fit

FITS = "calibration/fits"
MEASUREMENTS = "calibration/measurements"


def own_folder(room: str) -> Path:
    """First existing folder of a room in the search order, else one to be made in the current folder."""
    from moesim.files.find import data_folders  # noqa: PLC0415

    found = data_folders(room)
    return found[0] if found else Path.cwd() / room


def emit_fits(name: str, fits: DeviceFits, path: Path, *, json: bool) -> None:
    """Table or JSON of what was fitted and how well it does on rows not seen."""
    rows = [fit_row(fit) for fit in fits.fits]
    if json:
        emit_json(envelope(name, device=fits.device, path=str(path), rows=rows))
        return
    columns = ["family", "dtype", "source", "variant", "rows", "held-out", "new shapes", "larger shapes"]
    shown = [
        [fit.family, fit.dtype, fit.source, fit.variant, f"{fit.num_rows:,}"]
        + [score_text(s) for s in (fit.held_out, fit.new_shapes, fit.larger_shapes)]
        for fit in fits.fits
    ]
    title = f"Fits of {fits.device}: median / P90 error, rows inside the 80 % band"
    table(title, columns, shown, right=[4, 5, 6, 7])
    note(f"wrote {path}")


def fit_row(fit: Fit) -> dict[str, Any]:
    """What a fit says of itself, flat."""
    keys = ("family", "dtype", "source", "variant", "num_rows", "num_fitted_rows", "num_dropped_rows")
    scores = {n: getattr(fit, n) for n in ("held_out", "new_shapes", "larger_shapes", "far_larger_shapes")}
    return {k: getattr(fit, k) for k in keys} | {
        n: None if s is None else s.model_dump() for n, s in scores.items()
    }


def score_text(score: Score | None) -> str:
    """``4.3 / 14 %, 81 %``, or a dash."""
    if score is None:
        return "-"
    return f"{100 * score.median_ape:.1f} / {100 * score.p90_ape:.0f} %, {100 * score.coverage:.0f} %"
