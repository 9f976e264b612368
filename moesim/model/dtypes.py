"""Storage formats of weights, activations and caches: the one table of bits per number.

A block-scaled format stores one scale for a block of weights; its bits per weight are those of an
element plus its share of the scale. Padding of ragged last blocks is left out (below 0.1 % for the
shapes of published models).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from moesim.errors import InputError, did_you_mean

BITS_PER_BYTE = 8


@dataclass(frozen=True, slots=True)
class Format:
    """How one number is stored.

    Attributes
    ----------
    name : str
        Word used in scenarios, measured points and kernels.
    element_bits : int
        Bits of an element. [bit]
    block_elements : int
        Elements that share one scale; 1 means that scales are per tensor or per channel and not counted.
    scale_bits : int
        Bits of the scale of a block. [bit]
    source : str
        Where the layout is published.
    """

    name: str
    element_bits: int
    source: str
    block_elements: int = 1
    scale_bits: int = 0

    @property
    def bits_per_element(self) -> float:
        """Stored bits of one number with its share of the scale. [bit]"""
        return self.element_bits + self.scale_bits / self.block_elements

    @property
    def bytes_per_element(self) -> float:
        """Stored bytes of one number with its share of the scale. [bytes]"""
        return self.bits_per_element / BITS_PER_BYTE


_OCP_MX = "OCP Microscaling Formats (MX) Specification v1.0, 2023-09: blocks of 32, one E8M0 scale"

FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("fp32", 32, "IEEE 754"),
        Format("bf16", 16, "bfloat16"),
        Format("fp16", 16, "IEEE 754"),
        Format("fp8", 8, "OCP 8-bit floating point specification v1.0 (E4M3); a scale per tensor or channel"),
        Format(
            "fp8_block",
            8,
            "DeepSeek-V3 technical report, arXiv:2412.19437, section 3.3: 128 x 128 blocks, fp32 scale",
            block_elements=128 * 128,
            scale_bits=32,
        ),
        Format("int8", 8, "a scale per channel (LLM.int8, SmoothQuant)"),
        Format(
            "int4",
            4,
            "AWQ (arXiv:2306.00978) and GPTQ checkpoints: groups of 128, fp16 scale and 4-bit zero point",
            block_elements=128,
            scale_bits=20,
        ),
        Format(
            "int4_g32",
            4,
            "Kimi-K2.5 config.json, quantization_config: symmetric groups of 32, bf16 scale",
            block_elements=32,
            scale_bits=16,
        ),
        Format("mxfp8", 8, _OCP_MX, block_elements=32, scale_bits=8),
        Format("mxfp4", 4, _OCP_MX, block_elements=32, scale_bits=8),
        Format(
            "nvfp4",
            4,
            "NVIDIA, Introducing NVFP4, 2025-06: blocks of 16, one E4M3 scale, one fp32 scale a tensor",
            block_elements=16,
            scale_bits=8,
        ),
    )
}


def storage_format(name: str, *, field: str = "dtypes") -> Format:
    """Format called ``name``.

    Raises
    ------
    InputError
        Unknown name; lists those known.
    """
    try:
        return FORMATS[name]
    except KeyError:
        hint = did_you_mean(name, FORMATS)
        raise InputError.at(field, name, f"one of {', '.join(FORMATS)}{hint}") from None


def bytes_per_element(name: str) -> float:
    """Stored bytes of one number of format ``name``, scales included. [bytes]"""
    return storage_format(name).bytes_per_element


@dataclass(frozen=True, slots=True)
class Dtypes:
    """Formats of the parts of a model.

    Attributes
    ----------
    weights : str
        Dense and shared-expert projections, and those of attention.
    experts : str
        Routed experts.
    kv : str
        Cached keys and values.
    activations : str
        What moves between operations. A kernel that quantises its input on the fly (fp8, nvfp4
        GEMM) still reads and writes this format.
    head : str
        Embedding, output head and router: published quantised checkpoints (DeepSeek-V3, gpt-oss,
        NVFP4 exports) leave these in bf16.
    attention : str
        Projections of the token mixer where a checkpoint keeps these apart; empty: as ``weights``.
    """

    weights: str = "bf16"
    experts: str = "bf16"
    kv: str = "bf16"
    activations: str = "bf16"
    head: str = "bf16"
    attention: str = ""

    def __post_init__(self) -> None:
        for part in ("weights", "experts", "kv", "activations", "head", "attention"):
            if part != "attention" or self.attention:
                storage_format(getattr(self, part), field=f"dtypes.{part}")

    def of_mixer(self) -> Dtypes:
        """Formats as the token mixer sees them."""
        return replace(self, weights=self.attention) if self.attention else self
