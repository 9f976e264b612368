"""The whole harness: order of the cases, the budget, the progress line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from . import attention, collectives, copies, dense, experts, streams
from .cases import Case, interleaved
from .machine import cache_bytes, provenance
from .output import append, done, file_of
from .timing import Timing, measure

COPIES_MAX = 64
OUTGROW = 3.0
"""Copies together are this many times the cache, so that weights come from main memory."""
BUILD_BYTES = 1 << 30
"""Most memory that all copies of a case take together."""
GPU_DTYPES = ("bf16", "fp16", "fp8", "int8_x_int8")
CPU_DTYPES = ("fp32", "bf16", "int8_x_int8")

Progress = Callable[[int, int, float, str], None]


def makers(
    device: str, dtypes: list[str], memory_bytes: float, folder: Path
) -> Mapping[str, list[Iterator[Case]]]:
    """Cases of every family, each most informative first; the families' ``launch`` is one case."""
    gpu = device.startswith("cuda")
    flops = 4e13 if gpu else 2e10
    size = min(memory_bytes / 8, 4e9 if gpu else 2.5e8)
    wide = [name for name in dtypes if name not in dense.NARROW]
    return {
        "launch": [dense.launch(device)],
        "gemm": [dense.gemm(device, [name], 400, flops) for name in dtypes],
        "moe": [experts.experts(device, name, 250, size) for name in wide],
        "attention_prefill": [attention.prefill(device, name, 120, flops) for name in wide],
        "attention_decode": [attention.decode(device, name, 120, size) for name in wide],
        "mla_prefill": [attention.prefill(device, name, 30, flops, "mla_prefill") for name in wide],
        "mla_decode": [attention.decode(device, name, 30, size, "mla_decode") for name in wide],
        "router": [dense.router(device, name, 80) for name in wide],
        "elementwise": [streams.elementwise(device, name, 90) for name in wide],
        "copy": [copies.copies(device, 16, size), copies.disk(folder, 4)],
        "collectives": [collectives.cases(device, 12, size / 4)],
    }


def all_cases(
    device: str, dtypes: list[str], families: list[str] | None, memory_bytes: float, folder: Path
) -> list[Case]:
    """Every case of the asked families, most informative first, families in turn.

    Raises
    ------
    ValueError
        A family that is not one of :func:`makers`.
    """
    made = makers(device, dtypes, memory_bytes, folder)
    unknown = sorted(set(families or ()) - set(made))
    if unknown:
        message = f"family: got {', '.join(unknown)}; accepted: {', '.join(made)}"
        raise ValueError(message)
    chosen = made if families is None else {name: made[name] for name in families}
    return interleaved(cases for lists in chosen.values() for cases in lists)


def run(
    folder: Path,
    *,
    minutes: float,
    name: str,
    device: str = "cpu",
    dtypes: list[str] | None = None,
    families: list[str] | None = None,
    progress: Progress | None = None,
) -> list[Path]:
    """Measure until the budget is spent or nothing is left; files written to.

    A case that other work on the machine disturbed is tried once more at the end, and left out if it
    was disturbed again: a later run measures it.

    Parameters
    ----------
    folder : Path
        Where the CSV files of this machine are; what they hold already is not measured again.
    minutes : float
        Budget. [min]
    name : str
        Name of the device's profile, for the record.
    device : str
        ``cpu`` or ``cuda``.
    dtypes : list of str, optional
        Of ``bf16``, ``fp16``, ``fp32``, ``fp8``, ``int8_x_int8``; what the device is good at by default.
    families : list of str, optional
        Only these.
    progress : callable, optional
        Called with cases done, cases left, minutes left, name of the family.

    Raises
    ------
    ValueError
        Unknown family.
    """
    import torch

    gpu = device.startswith("cuda")
    memory = torch.cuda.get_device_properties(0).total_memory if gpu else 8e9
    folder.mkdir(parents=True, exist_ok=True)
    cases = all_cases(device, dtypes or list(GPU_DTYPES if gpu else CPU_DTYPES), families, memory, folder)
    known, facts = done(folder), provenance(device, name)
    todo = [case for case in cases if case.key not in known]
    deadline = time.monotonic() + 60 * minutes
    timer = _Timer(device)
    written: dict[Path, None] = {}
    again: list[Case] = []
    torch.manual_seed(0)
    try:
        with torch.inference_mode():
            for number, case in enumerate(_then(todo, again)):
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                if progress is not None:
                    progress(number, max(0, len(todo) + len(again) - number), left / 60, case.family)
                timing = timer.time(case)
                if timing is None:
                    continue
                if timing.disturbed:
                    again += [case] if number < len(todo) else []
                    continue
                path = file_of(folder, facts["date"], case.family)
                append(path, case, timing, facts)
                written[path] = None
    finally:
        timer.close()
    return list(written)


def _then(first: list[Case], later: list[Case]) -> Iterator[Case]:
    """Cases of a list, then those of another that grows meanwhile."""
    yield from first
    yield from later


class _Timer:
    """Times cases, each on as many copies and threads as it needs."""

    def __init__(self, device: str) -> None:
        import torch

        self._device = device
        self._cache = cache_bytes(device)
        self._threads = torch.get_num_threads()
        self._ranks = collectives.Ranks(device)

    def time(self, case: Case) -> Timing | None:
        """Timing of a case; None where this build of torch has no such kernel, or it does not fit."""
        import torch

        try:
            if case.family in collectives.NAMES:
                return self._ranks.measure(case)
            torch.set_num_threads(case.threads or self._threads)
            device = "cpu" if case.labels.get("direction") in copies.ON_HOST else self._device
            # what a launch costs the host is the one thing that a full queue would hide
            return measure(case.build(self._copies(case)), device, queued=case.family != "launch")
        except (RuntimeError, NotImplementedError, OSError):
            if self._device.startswith("cuda"):
                torch.cuda.empty_cache()
            return None

    def _copies(self, case: Case) -> int:
        if not case.working_bytes:
            return 1
        wanted = math.ceil(OUTGROW * self._cache / case.working_bytes)
        return max(1, min(COPIES_MAX, wanted, int(BUILD_BYTES / case.working_bytes)))

    def close(self) -> None:
        """End helper processes and give all threads back."""
        import torch

        self._ranks.close()
        torch.set_num_threads(self._threads)
