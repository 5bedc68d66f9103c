"""The machine and the libraries that a record was made with."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["cores", "cpu_name", "environment", "memory_bytes"]

LIBRARIES = ("numpy", "scipy", "torch", "transformers", "peft", "scikit-learn", "scikit-image", "numba", "python-flint",
             "triton", "onnxruntime", "pillow")  # fmt: skip


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def memory_bytes() -> int:
    """Physical memory of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 0


def cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as info:
            return next(line.partition(":")[2].strip() for line in info if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def libraries() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment(threads: int = 1, device: str = "cpu") -> dict[str, Any]:
    """The `environment` part of a record."""
    gpu = None
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_name(device)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {
        "python": platform.python_version(), "platform": f"{sys.platform} {platform.machine()}", "cpu": cpu_name(),
        "cores": cores(), "memory_bytes": memory_bytes(), "threads": threads, "load": round(load, 2),
        "libraries": libraries(), "gpu": gpu,
    }  # fmt: skip
