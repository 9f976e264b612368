"""What was measured on: device, driver, library versions, clocks. Nothing here may fail a measurement."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path


def provenance(device: str, name: str) -> dict[str, str]:
    """Facts that go on top of every file, as text."""
    import torch

    facts = {
        "device": name,
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "cpu": cpu_name(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        # folders of the machine are nobody's business: only names are kept
        "command": " ".join(Path(word).name if "/" in word else word for word in sys.argv),
    }
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "gpu": properties.name,
            "gpu_memory_bytes": str(properties.total_memory),
            "gpu_units": str(properties.multi_processor_count),
            "cuda": str(torch.version.cuda or torch.version.hip),
        }
        facts |= nvidia_facts()
    else:
        facts["load_average"] = " ".join(f"{load:.2f}" for load in os.getloadavg())
        facts["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        facts |= cpu_facts()
    return facts


def cpu_name() -> str:
    """Model name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


def cpu_facts() -> dict[str, str]:
    """Clock and scheduling class, where the system tells."""
    facts = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            clocks = [line.split(":", 1)[1].strip() for line in file if line.startswith("cpu MHz")]
        if clocks:
            facts["cpu_clock_mhz"] = " ".join(clocks[:8])
    except OSError:
        pass
    if hasattr(os, "sched_getscheduler"):
        names = {os.SCHED_OTHER: "normal", os.SCHED_FIFO: "real time, fifo", os.SCHED_RR: "real time, rr"}
        policy = os.sched_getscheduler(0)
        facts["scheduling"] = f"{names.get(policy, policy)}, nice {os.nice(0)}"
    return facts


def nvidia_facts() -> dict[str, str]:
    """Driver, clocks and power limit where nvidia-smi answers."""
    fields = "driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,power.draw"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-i", "0"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    names = ["driver", "sm_clock_mhz", "memory_clock_mhz", "max_sm_clock_mhz", "power_limit_w", "power_w"]
    return dict(zip(names, (part.strip() for part in answer.splitlines()[0].split(",")), strict=False))


def cache_bytes(device: str) -> float:
    """Size that working sets must exceed to come from main memory."""
    import torch

    if device.startswith("cuda"):
        return float(getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 0) or 64 * 2**20)
    try:
        total = 0
        for index in range(5):
            path = f"/sys/devices/system/cpu/cpu0/cache/index{index}/size"
            if os.path.exists(path):
                with open(path, encoding="utf-8") as file:
                    total = max(total, int(file.read().strip().rstrip("K")) * 1024)
        return float(total or 32 * 2**20)
    except (OSError, ValueError):
        return 32.0 * 2**20
