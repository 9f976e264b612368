"""Cost of operations from fitted physical forms; where nothing was fitted, from the tier below."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.evidence import Estimate, Grade
from moesim.hardware.schema import Device
from moesim.kernels.correction_table import CorrectionTable
from moesim.kernels.cost import FAMILY, KernelCost
from moesim.kernels.fit_file import REGIMES, DeviceFits, Fit
from moesim.kernels.forms.base import Machine, Parts
from moesim.kernels.forms.families import FORMS, Form
from moesim.kernels.forms.formats import QUANTISES_INPUTS, attention_dtype
from moesim.kernels.forms.regime import regime_index
from moesim.kernels.histogram import ExpertLoad
from moesim.kernels.measured import feature_columns
from moesim.kernels.near_rows import NearRows
from moesim.model.ops import AttentionDecode, AttentionPrefill, Gemm, GroupedExperts, MemoryBound, Op, Router

ALIASES = {"fp16": "bf16", "int4_g32": "int4", "mxfp8": "fp8"}
"""Formats whose kernels differ too little to measure apart."""

RANGE_SLACK = 1.25
"""How far beyond the shapes seen still counts as seen."""

FAR_SLACK = 8.0
"""From here on a shape is far beyond those seen: about as far as the fifth of largest rows lies beyond the
smaller half of a table, where the wider ratio was measured."""

IGNORED_RANGES = frozenset({"window", "top_k", "count", "gated", "tokens", "all_rows"})

Columns = Mapping[str, Any]


@dataclass(frozen=True)
class _Kernel:
    """A fit made ready to be evaluated."""

    fit: Fit
    form: Form
    machine: Machine
    parameters: Any
    choice: Any
    sigma: NDArray[np.float64]
    table: CorrectionTable | None


@dataclass(frozen=True)
class FittedCost:
    """Physical forms with fitted parameters, vectorised.

    Attributes
    ----------
    device : Device
        Its datasheet figures multiply the fitted ratios: a changed bandwidth changes the time.
    fits : DeviceFits
        Of this device, or of the nearest measured one.
    fallback : KernelCost
        Answers where nothing was fitted.
    engine : str
        Whose kernels.
    least_sigma : mapping of str to float
        Smallest sigma of a family: of transferred fits, the error measured when transferring. [-]
    grade : str
        What the estimates may claim.
    near : mapping of str to NearRows
        Measured rows by the key of their fit: looked up beside it where they are near.
    """

    device: Device
    fits: DeviceFits
    fallback: KernelCost
    engine: str = "default"
    least_sigma: Mapping[str, float] = field(default_factory=dict)
    grade: Grade = "fitted"
    near: Mapping[str, NearRows] = field(default_factory=dict)

    def op(self, op: Op) -> Estimate:
        """Duration of an operation that is its own description."""
        match op:
            case Gemm():
                columns = {"rows": op.rows, "n": op.n, "k": op.k, "count": op.count}
                return self._estimate("gemm", "", op.weight_dtype, columns, op)
            case AttentionPrefill() if op.v_dim > 0:
                return self._prefill(op)
            case AttentionDecode() if op.v_dim > 0:
                return self._decode(op)
            case MemoryBound() if not np.any(op.flops):
                dtype = next((d for f, d in self._kernels if f == "elementwise"), "")
                return self._estimate("elementwise", "", dtype, {"moved_bytes": op.moved_bytes}, op)
            case Router():
                columns = {n: getattr(op, n) for n in ("tokens", "hidden", "num_experts", "top_k")}
                return self._estimate("router", "", op.weight_dtype, columns, op)
        return self.fallback.op(op)

    def experts(self, op: GroupedExperts, load: ExpertLoad) -> Estimate:
        """Duration of a grouped expert block; a rank is handed the rows of its own experts only."""
        kernel = self._found("moe", "", op.weight_dtype)
        if kernel is None:
            return self.fallback.experts(op, load)
        columns = {
            "tokens": load.rows / op.top_k,
            "hidden": op.hidden,
            "width": op.width,
            "num_experts_local": op.num_local_experts,
            "top_k": op.top_k,
            "gated": float(op.gated),
            "touched": load.touched,
            "rows": load.rows,
            "all_rows": load.rows,
            **{f"padded_{tile}": rows for tile, rows in load.padded_rows.items()},
        }
        work = kernel.form.work(_arrays(columns), kernel.fit.dtype)
        return self._timed(kernel, work, columns, "moe")

    def permutes(self, op: GroupedExperts) -> bool:
        """Whether the kernel was timed from tokens in their own order."""
        kernel = self._found("moe", "", op.weight_dtype)
        return self.fallback.permutes(op) if kernel is None else kernel.fit.permutes

    def quantises(self, op: Gemm) -> bool:
        """Whether the kernel was timed from inputs in 16 bits that it quantises itself."""
        kernel = self._found("gemm", "", op.weight_dtype)
        return self.fallback.quantises(op) if kernel is None else kernel.fit.dtype in QUANTISES_INPUTS

    def _prefill(self, op: AttentionPrefill) -> Estimate:
        columns = {
            "num_sequences": op.num_sequences,
            "query_tokens": op.query_tokens,
            "context_tokens": op.context_tokens,
            **_heads(op),
        }
        family = "mla_prefill" if op.qk_dim != op.v_dim else "attention_prefill"
        kernel = self._attention(family, "", op)
        if kernel is None:
            return self.fallback.op(op)
        work = replace(kernel.form.work(_arrays(columns), kernel.fit.dtype), is_causal=op.causal)
        # a cached context is more keys, of which the shapes seen had none: more work, not another kernel
        checked = {**columns, "context_tokens": 0}
        return self._timed(kernel, work, checked, FAMILY[AttentionPrefill])

    def _decode(self, op: AttentionDecode) -> Estimate:
        columns = {"num_sequences": op.num_sequences, "context_tokens": op.context_tokens, **_heads(op)}
        family = "mla_decode" if op.qk_dim != op.v_dim else "attention_decode"
        variant = "grouped" if op.num_heads > op.num_kv_heads else "ungrouped"
        kernel = self._attention(family, variant, op)
        if kernel is None:
            return self.fallback.op(op)
        work = kernel.form.work(_arrays(columns), kernel.fit.dtype)
        # a serving step finds the cache in main memory, not where a repeated benchmark left it
        work = replace(
            work,
            attended_tokens=np.asarray(op.attended_tokens, dtype=np.float64),
            query_tokens=np.asarray(op.query_tokens, dtype=np.float64),
            kv_bytes_per_token=op.kv_bytes_per_token,
            is_cold=True,
        )
        return self._timed(kernel, work, columns, FAMILY[AttentionDecode])

    def _attention(self, family: str, variant: str, op: AttentionPrefill | AttentionDecode) -> _Kernel | None:
        """Kernel of the family, else of plain attention of the same phase, else of the fp16 pair."""
        phase = family.partition("_")[2]
        names = (attention_dtype(op.activation_dtype, op.kv_dtype), op.activation_dtype)
        for name in dict.fromkeys((family, f"attention_{phase}")):
            for dtype in names:
                found = self._found(name, variant, dtype)
                if found is not None:
                    return found
        return None

    def _estimate(self, family: str, variant: str, dtype: str, columns: Columns, op: Op) -> Estimate:
        kernel = self._found(family, variant, dtype)
        if kernel is None:
            return self.fallback.op(op)
        work = kernel.form.work(_arrays(columns), kernel.fit.dtype)
        return self._timed(kernel, work, columns, FAMILY[type(op)])

    def _timed(self, kernel: _Kernel, work: Any, columns: Columns, family: str) -> Estimate:
        parts = kernel.form.seconds(work, kernel.machine, kernel.parameters, kernel.choice)
        if kernel.table is not None:
            parts = parts._replace(seconds=parts.seconds * kernel.table.factor(columns))
        sigma = max(self._sigma(kernel, parts, columns), self._least_sigma(kernel.fit.family))
        seconds, grade = np.asarray(parts.seconds), self.grade
        rows = self.near.get(kernel.fit.key)
        if rows is not None:
            found = rows.look(columns)
            seconds = seconds * np.exp(found.log).reshape(seconds.shape)
            if found.is_near.all():
                grade, sigma = "interpolated", rows.sigma
        return Estimate(float(seconds) if seconds.ndim == 0 else seconds, family, grade, sigma)

    def _sigma(self, kernel: _Kernel, parts: Parts, columns: Columns) -> float:
        """Mean over the elements, weighted with their time; wider outside the shapes seen."""
        sigma: Any = kernel.sigma[regime_index(parts, kernel.parameters.launch_s)]
        outside = _unseen(kernel.fit, columns, RANGE_SLACK)
        if np.any(outside):
            far = _unseen(kernel.fit, columns, FAR_SLACK)
            ratio = np.where(far, kernel.fit.far_larger_sigma_ratio, kernel.fit.larger_sigma_ratio)
            sigma = np.where(outside, sigma * ratio, sigma)
        seconds = np.asarray(parts.seconds)
        total = float(seconds.sum())
        if total <= 0:
            return float(kernel.sigma.max())
        return float((sigma * seconds).sum() / (total * (sigma * seconds).size / seconds.size))

    def _least_sigma(self, family: str) -> float:
        """A family whose transfer was not measured is taken to move as badly as the worst."""
        return self.least_sigma.get(family, max(self.least_sigma.values(), default=0.0))

    def _found(self, family: str, variant: str, dtype: str) -> _Kernel | None:
        for name in dict.fromkeys((dtype, ALIASES.get(dtype, dtype))):
            kernels = self._kernels.get((family, name), {})
            if kernels:
                return kernels.get(variant) or next(iter(kernels.values()))
        return None

    @cached_property
    def _kernels(self) -> dict[tuple[str, str], dict[str, _Kernel]]:
        ready: dict[tuple[str, str], dict[str, _Kernel]] = {}
        for key, fits in self.fits.chosen(self.engine).items():
            form = FORMS[key[0]]
            for fit in fits:
                machine = form.machine(self.device, fit.dtype)
                sigma = np.array([fit.sigma[name] for name in REGIMES])
                values = fit.parameter_values(), fit.choice_values()
                table = None
                if fit.correction is not None:
                    table = CorrectionTable(fit.correction, form, fit.dtype, machine, *values, _usual(fit))
                ready.setdefault(key, {})[fit.variant] = _Kernel(fit, form, machine, *values, sigma, table)
        return ready


def _arrays(columns: Columns) -> dict[str, Any]:
    return {name: np.asarray(value, dtype=np.float64) for name, value in columns.items()}


def _heads(op: AttentionPrefill | AttentionDecode) -> dict[str, Any]:
    names = ("num_heads", "num_kv_heads", "qk_dim", "v_dim")
    return {name: getattr(op, name) for name in names} | {"window": op.window or 0}


def _usual(fit: Fit) -> dict[str, float]:
    """Least value seen of every column; 1 where none was."""
    return dict.fromkeys(feature_columns(fit.family), 1.0) | {n: least for n, (least, _) in fit.seen.items()}


def _unseen(fit: Fit, columns: Columns, slack: float) -> Any:
    """Where any quantity lies outside the range of the rows fitted by more than a factor."""
    outside: Any = False
    for name, value in columns.items():
        if name not in fit.seen or name in IGNORED_RANGES or name.startswith("padded_"):
            continue
        least, most = fit.seen[name][0] / slack, fit.seen[name][1] * slack
        if isinstance(value, int | float):
            outside = outside | (not least <= value <= most)
        elif np.min(value, initial=most) < least or np.max(value, initial=least) > most:
            outside = outside | np.less(value, least) | np.greater(value, most)
    return outside
