"""Collectives between processes of this machine: NCCL where there are several GPUs, else gloo on the CPU."""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from .cases import Case
from .shapes import log_points
from .timing import SAMPLES_MIN, Timing

NAMES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
SAMPLES = 15
START_S = 60.0
CASE_S = 30.0


def ranks(device: str) -> int:
    """Processes to start: one a GPU, or one a core up to 8."""
    import torch

    return torch.cuda.device_count() if device.startswith("cuda") else min(8, os.cpu_count() or 1)


def cases(device: str, count: int, largest_bytes: float) -> Iterator[Case]:
    """Payloads from small to large of each collective; none where there is one rank only."""
    number = ranks(device)
    if number < 2:
        return
    source = "nccl" if device.startswith("cuda") else "gloo"
    for shape in log_points(count, {"bytes": (1024, largest_bytes)}, {"bytes": 4 * number}):
        features = {"num_ranks": number, "payload_bytes": shape["bytes"]}
        for name in NAMES:
            yield Case(name, source, "fp32", features, lambda _copies: [])


class Ranks:
    """Processes that wait for collectives to time; started when first asked, ended by :meth:`close`.

    Each rank's ``payload_bytes`` is its whole input of a reduction or an exchange, and the whole
    result of a gather.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._context: Any = None

    def measure(self, case: Case) -> Timing:
        """Time of one collective, the slowest rank's in each repetition.

        Raises
        ------
        NotImplementedError
            The backend has no such collective, or did not answer.
        """
        if self._context is None:
            self._start()
        for inbox in self._inboxes:
            inbox.put((case.family, int(case.features["payload_bytes"])))
        try:
            answers = [self._outbox.get(timeout=CASE_S) for _ in self._inboxes]
        except queue.Empty:
            self.close()
            raise NotImplementedError(case.family) from None
        if not all(answers):
            raise NotImplementedError(case.family)
        times = np.max(answers, axis=0)
        low, middle, high = np.quantile(times, [0.1, 0.5, 0.9])
        return Timing(float(middle), float((high - low) / middle), len(times))

    def _start(self) -> None:
        from torch import multiprocessing

        spawn = multiprocessing.get_context("spawn")
        number = ranks(self._device)
        self._inboxes = [spawn.SimpleQueue() for _ in range(number)]
        self._outbox = spawn.Queue()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
        self._context = [
            spawn.Process(
                target=_serve,
                args=(rank, number, address, self._device, self._inboxes[rank], self._outbox),
                daemon=True,
            )
            for rank in range(number)
        ]
        for process in self._context:
            process.start()

    def close(self) -> None:
        """End the processes."""
        for process in self._context or ():
            process.terminate()
            process.join()
        self._context = None


def _serve(rank: int, number: int, address: str, device: str, inbox: Any, outbox: Any) -> None:
    """Loop of one process: take a collective and a size, time it, answer with the times."""
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    gpu = device.startswith("cuda")
    if gpu:
        torch.cuda.set_device(rank)
    else:
        torch.set_num_threads(1)
    backend = "nccl" if gpu else "gloo"
    dist.init_process_group(
        backend, init_method=address, rank=rank, world_size=number, timeout=timedelta(seconds=START_S)
    )
    where = f"cuda:{rank}" if gpu else "cpu"
    while True:
        name, size = inbox.get()
        try:
            outbox.put(_times(name, size // (4 * number), number, where))
        except (RuntimeError, NotImplementedError, AttributeError):
            outbox.put([])


def _times(name: str, part: int, number: int, where: str) -> list[float]:
    import torch
    import torch.distributed as dist

    whole, piece = torch.ones(part * number, device=where), torch.ones(part, device=where)
    out = torch.empty_like(whole)
    calls = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "all_gather": lambda: dist.all_gather_into_tensor(out, piece),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(piece, whole),
        "all_to_all": lambda: dist.all_to_all_single(out, whole),
    }
    taken = []
    for sample in range(SAMPLES + SAMPLES_MIN):
        whole.fill_(1.0)
        dist.barrier()
        if where != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        calls[name]()
        if where != "cpu":
            torch.cuda.synchronize()
        if sample >= SAMPLES_MIN:
            taken.append(time.perf_counter() - started)
    return taken
