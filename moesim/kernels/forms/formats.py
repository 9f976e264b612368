"""Which formats a kernel's datatype name stands for.

A GEMM or expert kernel is named after its weights: ``bf16``, ``fp8`` (inputs quantised on the fly),
``int4`` (weight-only: inputs stay 16-bit); ``mxfp4_x_mxfp8`` names both operands. An attention kernel
is named after its queries and, where they differ, its cache: ``bf16``, ``bf16_kv_fp8``.
"""

from __future__ import annotations

from dataclasses import dataclass

from moesim.model.dtypes import bytes_per_element

QUANTISES_INPUTS = frozenset({"fp8", "fp8_block", "mxfp8", "nvfp4"})
"""Weights whose kernels quantise their inputs to the same format."""

MULTIPLIES_AS = {"fp8_block": "fp8", "mxfp8": "fp8"}

WIDE = frozenset({"fp32", "bf16", "fp16"})


@dataclass(frozen=True, slots=True)
class Operands:
    """Formats of a kernel.

    Attributes
    ----------
    weights, inputs : str
        Storage formats as they enter the multiplication; of attention, cache and queries.
    outputs : str
        Storage format of results.
    """

    weights: str
    inputs: str
    outputs: str

    @property
    def multiplied_as(self) -> str:
        """Datatype whose peak binds: that of the wider operand."""
        return MULTIPLIES_AS.get(self.inputs, self.inputs)

    @property
    def weight_bytes(self) -> float:
        """Bytes of one stored weight (or cached number)."""
        return bytes_per_element(self.weights)

    @property
    def input_bytes(self) -> float:
        """Bytes of one input (or query) number."""
        return bytes_per_element(self.inputs)

    @property
    def output_bytes(self) -> float:
        """Bytes of one result."""
        return bytes_per_element(self.outputs)


def operands(dtype: str) -> Operands:
    """Operands of a GEMM or expert kernel by its datatype name.

    Examples
    --------
    >>> operands("int4")
    Operands(weights='int4', inputs='bf16', outputs='bf16')
    >>> operands("fp8_block").multiplied_as
    'fp8'
    """
    weights, named, inputs = dtype.partition("_x_")
    if not named:
        inputs = weights if weights in WIDE or weights in QUANTISES_INPUTS else "bf16"
    return Operands(weights, inputs, weights if weights in WIDE else "bf16")


def attention_operands(dtype: str) -> Operands:
    """Operands of an attention kernel: ``weights`` is the cache, ``inputs`` the queries.

    Examples
    --------
    >>> attention_operands("bf16_kv_fp8")
    Operands(weights='fp8', inputs='bf16', outputs='bf16')
    """
    queries, named, cache = dtype.partition("_kv_")
    return Operands(cache if named else queries, queries, queries if queries in WIDE else "bf16")


def attention_dtype(queries: str, cache: str) -> str:
    """Name of the attention kernel for formats of queries and cache."""
    return queries if queries == cache else f"{queries}_kv_{cache}"
