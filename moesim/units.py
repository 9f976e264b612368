"""Conversions between SI base units and what people read; the only home of such literals.

Inside the package every quantity is in its base unit (seconds, bytes, FLOP, joule). Rates are
decimal (GB/s is ``1e9``), capacities shown to people are binary (GiB).
"""

from __future__ import annotations

import math
from collections.abc import Callable

KB, MB, GB, TB = 1e3, 1e6, 1e9, 1e12
KIB, MIB, GIB, TIB = 2**10, 2**20, 2**30, 2**40
NS, US, MS = 1e-9, 1e-6, 1e-3
MEGA, GIGA, TERA, PETA, EXA, ZETTA = 1e6, 1e9, 1e12, 1e15, 1e18, 1e21
PS_PER_S = 10**12
"""Integer picoseconds per second: the engine's clock."""

_SI_PREFIXES = (
    (ZETTA, "Z"),
    (EXA, "E"),
    (PETA, "P"),
    (TERA, "T"),
    (GIGA, "G"),
    (MEGA, "M"),
    (KB, "k"),
    (1.0, ""),
)
_IEC_PREFIXES = ((TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"), (1, "B"))
_TIME_PREFIXES = ((1.0, "s"), (MS, "ms"), (US, "us"), (NS, "ns"))


def _digits(value: float) -> str:
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 10 else f"{value:.2f}"


def fmt_seconds(seconds: float) -> str:
    """Time with the unit people say, three significant digits: ``'31.2 ms'``."""
    if not math.isfinite(seconds):
        return str(seconds)
    for scale, unit in _TIME_PREFIXES:
        if abs(seconds) >= scale:
            return f"{_digits(seconds / scale)} {unit}"
    return "0 s" if seconds == 0 else f"{_digits(seconds / NS)} ns"


def fmt_bytes(num_bytes: float) -> str:
    """Capacity in binary units: ``'141 GiB'``."""
    for scale, unit in _IEC_PREFIXES:
        if abs(num_bytes) >= scale:
            return f"{_digits(num_bytes / scale)} {unit}"
    return "0 B"


def fmt_si(value: float, unit: str = "") -> str:
    """Decimal prefix: ``'4.80 TB/s'`` for ``fmt_si(4.8e12, 'B/s')``."""
    for scale, prefix in _SI_PREFIXES:
        if abs(value) >= scale:
            return f"{_digits(value / scale)} {prefix}{unit}".rstrip()
    return f"{value:.3g} {unit}".rstrip()


def fmt_parameters(count: float) -> str:
    """Number of parameters with the letter people use, B for 1e9: ``'30.5 B'``."""
    return fmt_si(count).replace("G", "B")


_WHOLE = 1000
"""Dollars and hours from which cents and minutes are left out."""
_SHOWN: dict[str, Callable[[float], str]] = {
    "s": fmt_seconds,
    "bytes": fmt_bytes,
    "fraction": lambda v: f"{100 * v:.1f} %",
    "ratio": lambda v: f"{v:.3g}x",
    "count": lambda v: f"{v:,.0f}",
    "parameters": fmt_parameters,
    "flops": lambda v: fmt_si(v, "FLOP"),
    "flops_per_s": lambda v: fmt_si(v, "FLOP/s"),
    "bytes_per_s": lambda v: fmt_si(v, "B/s"),
    "tokens": lambda v: f"{v:,.0f} tok",
    "tokens_per_s": lambda v: fmt_si(v, "tok/s"),
    "requests_per_s": lambda v: fmt_si(v, "req/s"),
    "per_s": lambda v: fmt_si(v, "/s"),
    "w": lambda v: fmt_si(v, "W"),
    "j": lambda v: fmt_si(v, "J"),
    "hz": lambda v: fmt_si(v, "Hz"),
    "usd": lambda v: f"{v:,.0f} USD" if abs(v) >= _WHOLE else f"{v:.2f} USD",
    "h": lambda v: f"{v:,.0f} h" if abs(v) >= _WHOLE else f"{_digits(v)} h",
}


def fmt_quantity(value: float, unit: str) -> str:
    """Value of a metric as people read it, by its unit name (``'s'``, ``'bytes'``, ``'tokens_per_s'``...)."""
    show = _SHOWN.get(unit)
    return show(value) if show else f"{value:.4g} {unit}".rstrip()


_SUFFIXES = (
    "tokens_per_s",
    "requests_per_s",
    "flops_per_s",
    "bytes_per_s",
    "per_s",
    "bytes",
    "flops",
    "tokens",
    "fraction",
    "ratio",
)
_SHORT_SUFFIXES = ("s", "w", "j", "hz", "usd", "mm2")


def unit_of(name: str) -> str:
    """Unit that a name carries: ``'bytes_per_s'`` for ``'link_bandwidth_bytes_per_s'``, empty if none."""
    words = f"_{name}"
    for unit in (*_SUFFIXES, *_SHORT_SUFFIXES):
        if words.endswith(f"_{unit}"):
            return unit
    return "count" if name.startswith("num_") else ""
