"""Which form answers for which family: parameters, discrete choices, and work from measured columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moesim.errors import InputError
from moesim.hardware.schema import Device
from moesim.kernels.forms import attention_decode, attention_prefill, experts, gemm, simple
from moesim.kernels.forms.base import Machine, Parts
from moesim.kernels.forms.formats import QUANTISES_INPUTS, attention_operands, operands
from moesim.kernels.histogram import TILE_ROWS
from moesim.kernels.measured import MeasuredTable
from moesim.model.dtypes import bytes_per_element

Columns = Mapping[str, NDArray[Any]]
Axes = dict[str, tuple[Any, ...]]

EAGER_FLOOR_S = 4e-5
"""A kernel whose fastest calls take this long may have been timed with its launch."""

LARGE_CACHE_S = 5e-5
"""A cache that holds more than the main memory delivers in this time shows in the measurements."""


UNCORRECTED = ("v_dim", "window")
"""Of a shape: follows from another column; is 0 where there is none."""


@dataclass(frozen=True)
class Form:
    """A physical form as the fit and the cost model use it.

    Attributes
    ----------
    parameters, choice : type
        Dataclasses of the fitted numbers and of the discrete choices.
    parts : callable
        ``(work, machine, parameters, choice) -> Parts``.
    free : callable
        ``choice -> names`` of the parameters that matter.
    work : callable
        ``(columns, dtype) -> work``.
    multiplied_as : callable
        ``dtype -> dtype`` whose peak binds.
    axes : callable
        ``(machine, dtype, fastest seconds) -> {field of choice: values to try}``, likeliest first.
    shape_columns : tuple of str
        Columns that make a weight or head shape, as against the load on it.
    load_columns : tuple of str
        Columns of the load, which vary from call to call.
    """

    parameters: type
    choice: type
    parts: Callable[[Any, Machine, Any, Any], Parts]
    free: Callable[[Any], tuple[str, ...]]
    work: Callable[[Columns, str], Any]
    multiplied_as: Callable[[str], str]
    axes: Callable[[Machine, str, float], Axes]
    shape_columns: tuple[str, ...]
    load_columns: tuple[str, ...]

    def machine(self, device: Device, dtype: str) -> Machine:
        """Datasheet figures for a kernel of this family and datatype."""
        return Machine.of(device, self.multiplied_as(dtype))

    def seconds(self, work: Any, machine: Machine, parameters: Any, choice: Any) -> Parts:
        """Time and the sides that bound it."""
        return self.parts(work, machine, parameters, choice)

    @property
    def correction_columns(self) -> tuple[str, ...]:
        """Columns that what the form leaves over may depend on."""
        return (*(n for n in self.shape_columns if n not in UNCORRECTED), *self.load_columns)

    def bounds(self) -> dict[str, tuple[float, float, float]]:
        """``{parameter: (start, low, high)}``."""
        return {
            f.name: (f.metadata["start"], f.metadata["low"], f.metadata["high"])
            for f in fields(self.parameters)
        }


def form_of(family: str) -> Form:
    """Form of a family.

    Raises
    ------
    InputError
        Nothing is fitted to this family.
    """
    if family not in FORMS:
        raise InputError.at("family", family, f"one with a physical form, {', '.join(FORMS)}")
    return FORMS[family]


def variants_of(table: MeasuredTable) -> Iterator[tuple[str, MeasuredTable]]:
    """Sub-kernels of a table by name, each with its rows; none where the family has no form.

    Libraries have other kernels for grouped than for ungrouped heads in decode; all else is one, ``""``.
    """
    if table.family not in FORMS or not table.num_rows:
        return
    if table.family != "attention_decode":
        yield "", table
        return
    grouped = table.columns["num_heads"] > table.columns["num_kv_heads"]
    for name, rows in (("grouped", grouped), ("ungrouped", ~grouped)):
        if rows.any():
            yield name, table.at(rows)


def _gemm_work(c: Columns, dtype: str) -> gemm.GemmWork:
    o = operands(dtype)
    return gemm.GemmWork(c["rows"], c["n"], c["k"], c["count"], o.weight_bytes, o.input_bytes, o.output_bytes)


def _gemm_axes(machine: Machine, dtype: str, fastest_s: float) -> Axes:
    if not machine.is_tiled:
        return {"tiling": ("smooth",), "cached": (False, True)}
    axes: Axes = {"tiling": ("best", "by_rows"), "quantises": (dtype in QUANTISES_INPUTS,)}
    if fastest_s > EAGER_FLOOR_S:
        axes["eager"] = (False, True)
    if _has_large_cache(machine):
        axes["cached"] = (False, True)
    return axes


def _expert_work(c: Columns, dtype: str) -> experts.ExpertWork:
    o = operands(dtype)
    return experts.ExpertWork(
        *(c["tokens"], c["all_rows"], c["rows"], c["touched"]),
        {tile: c[f"padded_{tile}"] for tile in TILE_ROWS},
        *(c["num_experts_local"], c["hidden"], c["width"], 1 + c["gated"]),
        *(o.weight_bytes, o.input_bytes),
    )


def _expert_axes(machine: Machine, dtype: str, fastest_s: float) -> Axes:
    del dtype, fastest_s
    if not machine.is_tiled:
        return {"tiling": ("smooth",), "cached": (False, True)}
    return {"tiling": ("best", "switch"), "streams_all_rows": (False, True)}


def _prefill_work(c: Columns, dtype: str) -> attention_prefill.PrefillWork:
    o = attention_operands(dtype)
    window = np.where(c["window"] > 0, c["window"], np.inf)
    return attention_prefill.PrefillWork(
        *(c["num_sequences"], c["query_tokens"], c["context_tokens"], c["num_heads"], c["num_kv_heads"]),
        *(c["qk_dim"], c["v_dim"], window),
        query_element_bytes=o.input_bytes,
        kv_element_bytes=o.weight_bytes,
    )


def _prefill_axes(machine: Machine, dtype: str, fastest_s: float) -> Axes:
    del machine, dtype, fastest_s
    return {"block_rows": (128, 64), "packs": (False, True)}


def _decode_work(c: Columns, dtype: str, *, is_latent: bool = False) -> attention_decode.DecodeWork:
    o = attention_operands(dtype)
    attended = c["context_tokens"] + 1
    attended = np.where(c["window"] > 0, np.minimum(attended, c["window"]), attended)
    width = c["qk_dim"] if is_latent else c["qk_dim"] + c["v_dim"]
    return attention_decode.DecodeWork(
        *(c["num_sequences"], attended, 1.0, c["num_heads"], c["num_kv_heads"], c["qk_dim"], c["v_dim"]),
        c["num_kv_heads"] * width * o.weight_bytes,
        bytes_per_element(o.outputs),
    )


def _latent_decode_work(c: Columns, dtype: str) -> attention_decode.DecodeWork:
    """Keys and values of a latent cache are the same numbers."""
    return _decode_work(c, dtype, is_latent=True)


def _decode_axes(machine: Machine, dtype: str, fastest_s: float) -> Axes:
    del machine, dtype, fastest_s
    return {
        "splits_per_unit": (1, 2, 4),
        "head_pad": (16, 64, 128),
        "head_block": (16, 64, 128),
        "chunk_tokens": (64, 256),
        "splits": (True, False),
    }


def _stream_work(c: Columns, dtype: str) -> simple.StreamWork:
    del dtype
    return simple.StreamWork(c["moved_bytes"])


def _router_work(c: Columns, dtype: str) -> simple.StreamWork:
    number = bytes_per_element(operands(dtype).weights)
    moved = c["hidden"] * c["num_experts"] * number
    scores = c["tokens"] * c["num_experts"]
    moved = moved + c["tokens"] * c["hidden"] * number + 2 * scores * bytes_per_element("fp32")
    return simple.StreamWork(moved, 2.0 * scores * c["hidden"], scores)


def _stream_axes(machine: Machine, dtype: str, fastest_s: float) -> Axes:
    del dtype, fastest_s
    return {"cached": (False, True)} if machine.cache_bytes else {}


def _router_axes(machine: Machine, dtype: str, fastest_s: float) -> Axes:
    del machine, dtype, fastest_s
    return {"scores": (True,)}


def _has_large_cache(machine: Machine) -> bool:
    return machine.cache_bytes > LARGE_CACHE_S * machine.bandwidth_bytes_per_s


def _as_operands(dtype: str) -> str:
    return operands(dtype).multiplied_as


def _as_attention(dtype: str) -> str:
    return attention_operands(dtype).multiplied_as


_HEADS = ("num_heads", "num_kv_heads", "qk_dim", "v_dim", "window")
_PREFILL = Form(
    attention_prefill.PrefillParameters,
    attention_prefill.PrefillChoice,
    attention_prefill.prefill_parts,
    attention_prefill.free_parameters,
    _prefill_work,
    _as_attention,
    _prefill_axes,
    _HEADS,
    ("num_sequences", "query_tokens", "context_tokens"),
)
_DECODE = Form(
    attention_decode.DecodeParameters,
    attention_decode.DecodeChoice,
    attention_decode.decode_parts,
    attention_decode.free_parameters,
    _decode_work,
    _as_attention,
    _decode_axes,
    _HEADS,
    ("num_sequences", "context_tokens"),
)
_STREAM = Form(
    simple.StreamParameters,
    simple.StreamChoice,
    simple.stream_parts,
    simple.free_parameters,
    _stream_work,
    _as_operands,
    _stream_axes,
    (),
    ("moved_bytes",),
)

FORMS: dict[str, Form] = {
    "gemm": Form(
        gemm.GemmParameters,
        gemm.GemmChoice,
        gemm.gemm_parts,
        gemm.free_parameters,
        _gemm_work,
        _as_operands,
        _gemm_axes,
        ("n", "k"),
        ("rows",),
    ),
    "moe": Form(
        experts.ExpertParameters,
        experts.ExpertChoice,
        experts.expert_parts,
        experts.free_parameters,
        _expert_work,
        _as_operands,
        _expert_axes,
        ("hidden", "width", "num_experts_local", "top_k"),
        ("rows", "touched"),
    ),
    "attention_prefill": _PREFILL,
    "mla_prefill": _PREFILL,
    "attention_decode": _DECODE,
    "mla_decode": Form(
        *(_DECODE.parameters, _DECODE.choice, _DECODE.parts, _DECODE.free),
        *(_latent_decode_work, _DECODE.multiplied_as, _DECODE.axes, _DECODE.shape_columns),
        _DECODE.load_columns,
    ),
    "elementwise": _STREAM,
    "router": Form(
        *(_STREAM.parameters, _STREAM.choice, _STREAM.parts, _STREAM.free),
        *(_router_work, _STREAM.multiplied_as, _router_axes, ("hidden", "num_experts", "top_k")),
        ("tokens",),
    ),
}
"""Families with a physical form; launches, copies and collectives have none here."""
