"""What a fit is and the file that holds a device's fits (made by ``moesim calibrate fit``, not by hand)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.errors import InputError
from moesim.evidence import Grade, Score
from moesim.files import find, listed
from moesim.files.document import read_document, write_document
from moesim.kernels.forms.correction import Correction
from moesim.kernels.forms.families import FORMS, variants_of
from moesim.kernels.measured import FAMILIES, MeasuredTable

ROOM = "calibration/fits"

Regime: TypeAlias = Literal["launch", "memory", "compute"]
REGIMES: tuple[Regime, ...] = ("launch", "memory", "compute")


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fit(_Frozen):
    """One kernel's parameters and what is known of their errors.

    Attributes
    ----------
    family, dtype, source : str
        As of the measured table. Empty ``variant``, or the part of the rows it is for.
    parameters, choice : dict
        Of the family's form.
    correction : Correction, optional
        What the form leaves over.
    permutes : bool
        Family ``moe``: gathering the rows of the experts and adding up their results is in the time.
    sigma : dict
        Standard deviation of ln(measured / predicted) by regime, from held-in residuals. [-]
    seen : dict
        ``{column: (least, most)}`` of the rows fitted.
    larger_sigma_ratio, far_larger_sigma_ratio : float
        How much wider the band must be beyond the shapes seen, and far beyond them. [-]
    num_rows, num_fitted_rows, num_dropped_rows : int
        Of the table; that entered the optimiser; that were called outliers by it. [-]
    held_out : Score
        Random rows of the table.
    regimes : dict
        The same rows by what bounds them.
    new_shapes, larger_shapes, far_larger_shapes : Score, optional
        Other fits of the same form, tested on whole unseen weight or head shapes; on the largest fifth
        after fitting the rest; on the largest fifth after fitting the smaller half. Coverage of the
        latter two is that of the widened band.
    """

    family: str
    dtype: str
    source: str
    variant: str = ""
    parameters: dict[str, float]
    choice: dict[str, bool | int | str] = Field(default_factory=dict)
    correction: Correction | None = None
    permutes: bool = False
    sigma: dict[Regime, float]
    seen: dict[str, tuple[float, float]]
    larger_sigma_ratio: float = Field(default=1.5, ge=1)
    far_larger_sigma_ratio: float = Field(default=1.5, ge=1)
    num_rows: int
    num_fitted_rows: int
    num_dropped_rows: int = 0
    held_out: Score | None = None
    regimes: dict[Regime, Score] = Field(default_factory=dict)
    new_shapes: Score | None = None
    larger_shapes: Score | None = None
    far_larger_shapes: Score | None = None
    evidence: str

    @model_validator(mode="after")
    def _of_its_form(self) -> Fit:
        if self.family not in FORMS:
            message = f"family {self.family!r} has no physical form; accepted: {', '.join(FORMS)}"
            raise ValueError(message)
        form = FORMS[self.family]
        for part, given, accepted in (
            ("parameters", self.parameters, [f.name for f in fields(form.parameters)]),
            ("choice", self.choice, [f.name for f in fields(form.choice)]),
            ("seen", self.seen, FAMILIES[self.family]),
        ):
            unknown = sorted(set(given) - set(accepted))
            if unknown:
                message = f"{part}: unknown {', '.join(unknown)}; accepted: {', '.join(accepted)}"
                raise ValueError(message)
        return self

    @property
    def key(self) -> str:
        """``family/dtype/source[/variant]``."""
        return "/".join(part for part in (self.family, self.dtype, self.source, self.variant) if part)

    def parameter_values(self) -> Any:
        """Parameters as the form takes them."""
        return FORMS[self.family].parameters(**self.parameters)

    def choice_values(self) -> Any:
        """Discrete choices as the form takes them."""
        return FORMS[self.family].choice(**self.choice)


class DeviceFits(_Frozen):
    """All fits of one device.

    Attributes
    ----------
    device : str
        Name of the device profile, and of the file.
    grade : str
        What estimates from them may claim.
    launch_s : float, optional
        Measured time between two empty kernels. [s]
    engines : dict
        ``{engine: {"family/dtype": kernel source}}``; ``default`` is used when no engine is named.
    fits : list
        One a kernel.
    sources : dict
        Where the measured rows came from.
    """

    schema_version: Literal[1] = 1
    device: str
    grade: Grade = "fitted"
    launch_s: float | None = None
    engines: dict[str, dict[str, str]]
    fits: tuple[Fit, ...]
    sources: dict[str, str]

    @model_validator(mode="after")
    def _engines_have_fits(self) -> DeviceFits:
        known = {f"{f.family}/{f.dtype}/{f.source}" for f in self.fits}
        for engine, kernels in self.engines.items():
            for kernel, source in kernels.items():
                if f"{kernel}/{source}" not in known:
                    message = f"engines.{engine}: no fit for {kernel} of source {source!r}"
                    raise ValueError(message)
        return self

    def chosen(self, engine: str = "default") -> dict[tuple[str, str], list[Fit]]:
        """``{(family, dtype): fits of the chosen kernel source, one a variant}``.

        Raises
        ------
        InputError
            Unknown engine.
        """
        if engine not in self.engines:
            raise InputError.at("engine", engine, ", ".join(self.engines), where=f"fits of {self.device}")
        kernels = self.engines["default"] | self.engines[engine]
        chosen: dict[tuple[str, str], list[Fit]] = {}
        for fit in self.fits:
            if kernels.get(f"{fit.family}/{fit.dtype}") == fit.source:
                chosen.setdefault((fit.family, fit.dtype), []).append(fit)
        return chosen

    def answering(self, table: MeasuredTable) -> Iterator[tuple[Fit, MeasuredTable]]:
        """Fits that answer for rows of a measured table, each with these rows."""
        for variant, part in variants_of(table):
            kernel = (table.family, table.dtype, table.source, variant)
            fit = next((f for f in self.fits if (f.family, f.dtype, f.source, f.variant) == kernel), None)
            if fit is not None:
                yield fit, part


def load_fits(device: str) -> DeviceFits:
    """Fits of a device by name or path.

    Raises
    ------
    InputError
        Not found, or not such a file: every problem with its line.
    """
    return read_document(DeviceFits, find(device, ROOM, field="device"))


def fitted_devices() -> list[str]:
    """Devices with a file of fits, sorted."""
    return listed(ROOM, suffixes=(".yaml",))


def write_fits(path: Path, fits: DeviceFits) -> Path:
    """Write a file of fits; the same fits give the same bytes."""
    return write_document(path, fits)
