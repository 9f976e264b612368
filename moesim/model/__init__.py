"""What a network is and what a forward pass of it does, in shapes; never in seconds."""

from moesim.model.dtypes import FORMATS, Dtypes, Format, bytes_per_element, storage_format
from moesim.model.from_hf import from_hf
from moesim.model.load import bundled_names, load
from moesim.model.spec import DenseFfn, LayerSpec, ModelSpec, MoeSpec, Published

__all__ = [
    "FORMATS",
    "DenseFfn",
    "Dtypes",
    "Format",
    "LayerSpec",
    "ModelSpec",
    "MoeSpec",
    "Published",
    "bundled_names",
    "bytes_per_element",
    "from_hf",
    "load",
    "storage_format",
]
