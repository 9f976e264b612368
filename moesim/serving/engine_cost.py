"""Cost of operations as one engine runs them: its choice of fitted kernels, in captured graphs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from moesim.hardware import load_device
from moesim.hardware.schema import Device
from moesim.kernels.choose import nearest_fitted, transfer_sigma
from moesim.kernels.cost import KernelCost, RooflineCost
from moesim.kernels.fit_file import DeviceFits, Fit, fitted_devices, load_fits
from moesim.kernels.fitted import FittedCost
from moesim.model.ops import AttentionDecode
from moesim.serving.profiles import Kernels

ANY = "*"
STATIC_SCALES = frozenset({"fp8", "nvfp4"})
"""Formats whose inputs may have scales that are known beforehand."""
FOLDED_S = 3e-7
"""Assumed: what quantising adds to the kernel that it is folded into. [s]"""


@dataclass(frozen=True)
class EngineCost(FittedCost):
    """Fitted forms, with the datatype name of the kernel that an engine uses for a weight format.

    Attributes
    ----------
    inputs : mapping
        ``{"family/dtype": dtype}``.
    """

    inputs: Mapping[str, str] = field(default_factory=dict)

    def attention_source(self, op: AttentionDecode) -> str:
        """Kernel that answers for attention of decoding sequences; empty where none was fitted."""
        family = "mla_decode" if op.qk_dim != op.v_dim else "attention_decode"
        kernel = self._attention(family, "", op)
        return kernel.fit.source if kernel else ""

    def _found(self, family: str, variant: str, dtype: str):  # type: ignore[no-untyped-def]  # noqa: ANN202
        chosen = self.inputs.get(f"{family}/{dtype}")
        found = super()._found(family, variant, chosen) if chosen else None
        return found or super()._found(family, variant, dtype)


def engine_cost(device: Device, kernels: Kernels) -> KernelCost:
    """Cost model of a device under an engine.

    Parameters
    ----------
    device : Device
        Without fits of its own it is answered by those of the nearest measured one, as in
        :func:`moesim.kernels.choose.cost_of`.
    kernels : Kernels
        What the engine runs.
    """
    small = device.model_copy(update={"launch_s": kernels.small_kernel_s})
    roofline = RooflineCost(small)
    source = device.name if device.name in fitted_devices() else nearest_fitted(device)
    if source is None:
        return roofline
    least = {} if source == device.name else transfer_sigma(device, load_device(source))
    fits = _chosen(load_fits(source), kernels)
    inputs = kernels.inputs.get(ANY, {}) | kernels.inputs.get(source, {})
    return EngineCost(small, fits, roofline, kernels.fits, least, inputs=inputs)


def _chosen(fits: DeviceFits, kernels: Kernels) -> DeviceFits:
    """Fits with the engine's own kernels, as they run inside a captured graph."""
    known = {f"{f.family}/{f.dtype}/{f.source}" for f in fits.fits}
    wanted = kernels.chosen.get(ANY, {}) | kernels.chosen.get(fits.device, {})
    found = {kernel: source for kernel, source in wanted.items() if f"{kernel}/{source}" in known}
    engine = fits.engines.get(kernels.fits, {}) | found
    engines = {"default": fits.engines["default"], kernels.fits: engine}
    wide = next((f for f in fits.fits if f.key == f"gemm/bf16/{engine.get('gemm/bf16')}"), None)
    launch_s = wide.parameters["launch_s"] if wide else kernels.small_kernel_s
    changed = tuple(_in_graph(fit, kernels, launch_s) for fit in fits.fits)
    return fits.model_copy(update={"engines": engines, "fits": changed})


def _in_graph(fit: Fit, kernels: Kernels, launch_s: float) -> Fit:
    """A GEMM without the host's launch and, where the engine folds it away, without quantising inputs."""
    if fit.family != "gemm":
        return fit
    choice, parameters = dict(fit.choice), dict(fit.parameters)
    folds = kernels.fuses_quantisation and fit.dtype in STATIC_SCALES and bool(choice.get("quantises"))
    if folds:
        choice["quantises"] = False
        parameters["launch_s"] = min(parameters["launch_s"], launch_s + FOLDED_S)
    if choice.get("eager"):
        choice["eager"] = False
        parameters["launch_s"] = min(parameters["launch_s"], launch_s)
    return (
        fit if choice == fit.choice else fit.model_copy(update={"choice": choice, "parameters": parameters})
    )
