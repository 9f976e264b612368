"""moesim: discrete-event simulator and performance modeler for Mixture-of-Experts models.

>>> import moesim
>>> result = moesim.run(moesim.resolve("deepseek_v3_decode_h200x32")).result  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from moesim.errors import CheckFailed, InfeasibleError, InputError, MoesimError

__version__ = "0.1.0"

_HOMES = {
    "frame": "moesim.scenario.frames",
    "load_cluster": "moesim.hardware",
    "load_device": "moesim.hardware",
    "load_model": "moesim.model",
    "read_trace": "moesim.traces",
    "resolve": "moesim.scenario.resolve",
    "run": "moesim.scenario.run",
    "vary": "moesim.scenario.vary",
}
"""Public functions, imported when they are first used: ``import moesim`` stays light."""

__all__ = [
    "CheckFailed",
    "InfeasibleError",
    "InputError",
    "MoesimError",
    "frame",
    "load_cluster",
    "load_device",
    "load_model",
    "read_trace",
    "resolve",
    "run",
    "vary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        message = f"module 'moesim' has no attribute {name!r}"
        raise AttributeError(message)
    original = "load" if name == "load_model" else name
    return getattr(import_module(_HOMES[name]), original)
