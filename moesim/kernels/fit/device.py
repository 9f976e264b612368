"""All fits of one device from its measured tables, and which kernel source stands for each datatype."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.hardware import load_device
from moesim.hardware.schema import Device
from moesim.kernels.choose import few_rows_sigma, is_same_architecture
from moesim.kernels.fit.optimise import LEAST_ROWS, Solution, predict_s, subsample
from moesim.kernels.fit.protocol import SMALL_TABLE_ROWS, Start, fit_table
from moesim.kernels.fit.transfer import prior_of, standing_in
from moesim.kernels.fit_file import DeviceFits, Fit
from moesim.kernels.forms.families import FORMS, variants_of
from moesim.kernels.measured import MeasuredTable

ENGINE_ORDER = ("vllm", "sglang", "trtllm")
"""Whose kernels stand for a datatype when no engine is named."""

USABLE_APE = 0.2
"""A fit worse than this stands for a datatype only when there is no other."""

SLOW = 1.3
"""A kernel typically this many times as slow as the fastest usable one is none that an engine chooses."""

SPEED_ROWS = 200
"""Rows of each source on which all sources are compared."""

Note = Callable[[str], None]


def fit_device(
    tables: Iterable[MeasuredTable],
    device: Device,
    *,
    side_fits: bool = True,
    near: DeviceFits | None = None,
    note: Note = lambda text: None,
) -> DeviceFits:
    """Fits of every table with a physical form.

    Parameters
    ----------
    tables : iterable of MeasuredTable
        Tables of other families are passed over; launches give ``launch_s``.
    device : Device
        Datasheet figures.
    side_fits : bool
        Also count errors on unseen and on larger shapes.
    near : DeviceFits, optional
        Of another device: small tables are fitted from its parameters.
    note : callable
        Told a line about each fit, and about each table that was passed over.

    Raises
    ------
    InputError
        A table is of another device; or no table could be fitted.
    """
    fits: list[Fit] = []
    samples: list[MeasuredTable] = []
    sources: dict[str, str] = {}
    launch_s = None
    for table in tables:
        if table.device != device.name:
            raise InputError.at("device", table.device, device.name, where=table.name)
        if table.family == "launch":
            launch_s = float(np.median(table.seconds / table.columns["num_kernels"]))
        if table.family not in FORMS:
            continue
        evidence = _evidence(table)
        sources[f"{table.family}/{table.dtype}/{table.source}"] = evidence
        for variant, part in variants_of(table):
            if part.num_rows < LEAST_ROWS:
                note(f"{table.name}: {part.num_rows} rows are too few to fit (at least {LEAST_ROWS})")
                continue
            start = _start(near, part, variant, device)
            fit, _ = fit_table(
                *(part, device),
                variant=variant,
                evidence=evidence if start is None else f"{evidence}, pulled towards {start.device}",
                side_fits=side_fits and start is None,
                start=start,
                note=note,
            )
            fits.append(fit)
            samples.append(subsample(part, SPEED_ROWS, "speed"))
    if not fits:
        message = f"no measured table of {device.name} has enough rows of a family with a form"
        raise InputError(message)
    fitted = {f"{f.family}/{f.dtype}/{f.source}" for f in fits}
    return DeviceFits(
        device=device.name,
        launch_s=launch_s,
        engines=engines_of(fits, slow_kernels(fits, samples, device)),
        fits=tuple(fits),
        sources={key: text for key, text in sources.items() if key in fitted},
    )


def _start(near: DeviceFits | None, table: MeasuredTable, variant: str, device: Device) -> Start | None:
    """Where the fit of a small table starts; None where the other device has nothing like it."""
    known = None if near is None else standing_in(near, table, variant)
    if near is None or known is None or table.num_rows >= SMALL_TABLE_ROWS:
        return None
    source = load_device(near.device)
    sigmas = few_rows_sigma(device, source)
    prior = prior_of(known, same_architecture=is_same_architecture(device, source))
    return Start(near.device, prior, sigmas.get(table.family, max(sigmas.values(), default=0.0)))


def engines_of(fits: Iterable[Fit], slow: Container[str] = ()) -> dict[str, dict[str, str]]:
    """``{engine: {"family/dtype": source}}`` with the best covered source of each, and ``default``.

    Parameters
    ----------
    fits : iterable of Fit
    slow : container of str
        Kernels, as of ``"family/dtype/source"``, that are taken only where there is no other.
    """
    by_kernel: dict[str, dict[str, list[Fit]]] = {}
    for fit in fits:
        by_kernel.setdefault(f"{fit.family}/{fit.dtype}", {}).setdefault(fit.source, []).append(fit)
    engines: dict[str, dict[str, str]] = {"default": {}}
    for kernel, sources in sorted(by_kernel.items()):
        passed_over = {source: f"{kernel}/{source}" in slow for source in sources}
        ranked = sorted(sources, key=lambda source: (passed_over[source], *_rank(sources[source])))
        for source in ranked:
            engines.setdefault(engine_of(source), {}).setdefault(kernel, source)
        usable = [s for s in ranked if _is_usable(sources[s]) and not passed_over[s]] or ranked
        engines["default"][kernel] = min(usable, key=lambda s: (_preference(s), _rank(sources[s])))
    return engines


def slow_kernels(fits: Iterable[Fit], samples: Iterable[MeasuredTable], device: Device) -> set[str]:
    """Kernels (``"family/dtype/source"``) typically :data:`SLOW` times as slow as the fastest usable one.

    All sources of a family and datatype are predicted on the same rows: some of each one's own table.
    Families without shapes are left out: their sources are different operations, not alternatives.
    """
    rows: dict[tuple[str, str], list[MeasuredTable]] = {}
    for sample in samples:
        rows.setdefault((sample.family, sample.dtype), []).append(sample)
    logs: dict[tuple[str, str, str], dict[str, NDArray[np.float64]]] = {}
    for fit in fits:
        solution = Solution.of(fit)
        parts = [predict_s(solution, sample, device) for sample in rows[fit.family, fit.dtype]]
        own = logs.setdefault((fit.family, fit.dtype, fit.variant), {})
        if _is_usable([fit]):
            own[fit.source] = np.log(np.concatenate(parts))
    slow = set()
    for (family, dtype, _), times in logs.items():
        if len(times) < 2 or not FORMS[family].shape_columns:
            continue
        fastest = np.min(list(times.values()), axis=0)
        slow |= {
            f"{family}/{dtype}/{source}"
            for source, own in times.items()
            if np.median(own - fastest) > np.log(SLOW)
        }
    return slow


def engine_of(source: str) -> str:
    """Engine that a kernel source belongs to: ``vllm`` of ``vllm/triton``."""
    return source.partition("/")[0]


def _rank(fits: list[Fit]) -> tuple[bool, float]:
    """Smaller is better: usable fits first, then those that saw more rows."""
    return not _is_usable(fits), -sum(fit.num_rows for fit in fits)


def _is_usable(fits: list[Fit]) -> bool:
    ape = [f.held_out.median_ape for f in fits if f.held_out is not None]
    return not any(fit.choice.get("eager", False) for fit in fits) and max(ape, default=0.0) <= USABLE_APE


def _preference(source: str) -> int:
    engine = engine_of(source)
    return ENGINE_ORDER.index(engine) if engine in ENGINE_ORDER else len(ENGINE_ORDER)


def _evidence(table: MeasuredTable) -> str:
    shown = ("package", "release", "gpu", "host", "driver", "torch", "date", "rows_left_out")
    facts = [f"{key} {table.provenance[key]}" for key in shown if key in table.provenance]
    return f"fitted: {table.num_rows} measured rows; " + ", ".join(facts)
