"""What was fitted of a device's fabric, and the file that holds it (made by ``moesim calibrate``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.evidence import Grade, Score
from moesim.files import find, listed
from moesim.files.document import read_document, write_document
from moesim.network.forms import FORMS

ROOM = "calibration/network"


SAME_GENERATION = {
    "a100_sxm_40": "a100_sxm_80",
    "h800_sxm": "h100_sxm",
    "h20": "h100_sxm",
    "rtx_pro_6000_workstation": "rtx_pro_6000",
}
"""Devices whose links were not measured -> one with the same kind of links; other rates are accounted for."""

TRANSFER_SIGMA_RATIO = 2.0
"""Assumed: twice the error of the device that was measured."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RankCurve(_Frozen):
    """Time against payload for one number of ranks: straight between knots, so a start and a rate each.

    Attributes
    ----------
    num_ranks : int
        Participants.
    payload_bytes, seconds : tuple of float, ``(knot,)``
        Rising, and never falling. [bytes], [s]
    dtype_factors : dict
        Factor of each datatype on the seconds; 1 for the first. [-]
    sigma : float
        Of ln(measured / predicted), from sizes that the fit did not see. [-]
    """

    num_ranks: int = Field(ge=2)
    payload_bytes: tuple[float, ...] = Field(min_length=2)
    seconds: tuple[float, ...] = Field(min_length=2)
    dtype_factors: dict[str, float] = Field(min_length=1)
    sigma: float = Field(ge=0)

    @model_validator(mode="after")
    def _rises(self) -> RankCurve:
        sizes, times = np.asarray(self.payload_bytes), np.asarray(self.seconds)
        if len(sizes) != len(times) or sizes[0] <= 0 or times[0] <= 0:
            raise ValueError("payload_bytes and seconds: accepted: as many of each, all above 0")
        if (np.diff(sizes) <= 0).any() or (np.diff(times) < 0).any():
            raise ValueError("accepted: rising payload_bytes and seconds that never fall")
        return self


class CollectiveFit(_Frozen):
    """Curves of one collective of one library.

    Attributes
    ----------
    collective, library : str
        ``all_reduce`` ..., ``nccl``, ``vllm`` ...
    curves : tuple of RankCurve
        By rising number of ranks.
    num_rows : int
        Measured.
    held_out : Score
        A third of the sizes of each (ranks, datatype) curve at a time; the same size of the other
        datatype may have been seen.
    sizes_left_out : Score
        The same where the size was seen with no datatype.
    decades : dict
        ``held_out`` by power of ten of the payload.
    """

    collective: str
    library: str
    curves: tuple[RankCurve, ...] = Field(min_length=1)
    num_rows: int
    held_out: Score
    sizes_left_out: Score
    decades: dict[str, Score]
    decades_left_out: dict[str, Score]
    evidence: str


class ExchangeFit(_Frozen):
    """Parameters of one phase of one expert-parallel exchange.

    Attributes
    ----------
    kernel, phase : str
        ``normal``, ``low_latency``, ``nvlink_one_sided``...; ``dispatch``, ``combine``...
    between : str
        ``ranks`` of one scale-up domain, or ``domains``.
    form : str
        A key of :data:`~moesim.network.forms.FORMS`.
    notify_s : dict
        Median time of the separate kernel that announces counts, by number of ranks. [s]
    seen : dict
        ``{quantity: (least, most)}`` of the rows fitted.
    ranks_left_out : dict
        Score on each number of ranks after fitting the others.
    """

    kernel: str
    phase: str
    source: str
    between: Literal["ranks", "domains"]
    form: str
    parameters: dict[str, float]
    notify_s: dict[str, float] = Field(default_factory=dict)
    sigma: float = Field(ge=0)
    seen: dict[str, tuple[float, float]]
    num_rows: int
    num_fitted_rows: int
    held_out: Score
    ranks_left_out: dict[str, Score] = Field(default_factory=dict)
    evidence: str

    @model_validator(mode="after")
    def _of_its_form(self) -> ExchangeFit:
        if self.form not in FORMS:
            message = f"form {self.form!r} is unknown; accepted: {', '.join(FORMS)}"
            raise ValueError(message)
        wanted = set(FORMS[self.form].parameters)
        if set(self.parameters) != wanted:
            message = f"parameters {sorted(self.parameters)}; accepted: {sorted(wanted)}"
            raise ValueError(message)
        return self

    @property
    def key(self) -> str:
        """``kernel/phase/between``."""
        return f"{self.kernel}/{self.phase}/{self.between}"


class NetworkFits(_Frozen):
    """All that was fitted of the links between devices of one kind.

    Attributes
    ----------
    device : str
        Name of the device profile, and of the file.
    grade : str
        What estimates may claim.
    scale_up_bytes_per_s, nic_bytes_per_s : float
        Datasheet rates of the links that were measured, one direction of a rank. [bytes/s]
    scale_up_latency_s, scale_out_latency_s : float
        Latencies that are part of the measured times: more or less of it changes them. [s]
    sigma_ratio : float
        How much wider bands are because another device answers. [-]
    """

    schema_version: Literal[1] = 1
    device: str
    grade: Grade = "fitted"
    scale_up_bytes_per_s: float = Field(gt=0)
    nic_bytes_per_s: float = Field(ge=0)
    scale_up_latency_s: float = Field(ge=0)
    scale_out_latency_s: float = Field(ge=0)
    sigma_ratio: float = Field(1.0, ge=1)
    collectives: tuple[CollectiveFit, ...] = ()
    exchanges: tuple[ExchangeFit, ...] = ()
    sources: dict[str, str]

    def collective(self, collective: str, library: str) -> CollectiveFit | None:
        """Curves of one collective and library, if they were measured."""
        wanted = (collective, library)
        return next((f for f in self.collectives if (f.collective, f.library) == wanted), None)

    def exchange(self, kernel: str, phase: str, between: str) -> ExchangeFit | None:
        """Parameters of one phase of an exchange, if it was measured."""
        wanted = f"{kernel}/{phase}/{between}"
        return next((f for f in self.exchanges if f.key == wanted), None)


def pooled(parts: Sequence[Mapping[str, Score]]) -> dict[str, dict[str, float]]:
    """Score of several curves by decade: means weighted by rows, and the worst curve's median."""
    found: dict[str, dict[str, float]] = {}
    for decade in sorted({decade for part in parts for decade in part}):
        own = [part[decade] for part in parts if decade in part]
        rows = sum(errors.num_rows for errors in own)
        found[decade] = {
            "curves": len(own),
            "num_rows": rows,
            **{
                name: sum(getattr(errors, name) * errors.num_rows for errors in own) / rows
                for name in ("median_ape", "p90_ape")
            },
            "worst_median_ape": max(errors.median_ape for errors in own),
        }
    return found


def fitted_fabrics() -> list[str]:
    """Devices with a file of network fits, sorted."""
    return listed(ROOM, suffixes=(".yaml",))


@lru_cache
def network_fits(device: str) -> NetworkFits | None:
    """Network fits of a device, or of the one of its generation, with wider bands; None where there are none.

    Raises
    ------
    InputError
        Not such a file: every problem with its line.
    """
    if device in fitted_fabrics():
        return read_document(NetworkFits, find(device, ROOM, field="device"))
    near = SAME_GENERATION.get(device)
    found = network_fits(near) if near is not None else None
    return None if found is None else found.model_copy(update={"sigma_ratio": TRANSFER_SIGMA_RATIO})


def write_network_fits(path: Path, fits: NetworkFits) -> Path:
    """Write a file of network fits; the same fits give the same bytes."""
    return write_document(path, fits)
