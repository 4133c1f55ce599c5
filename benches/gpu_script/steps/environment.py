"""Versions, the GPU, what is available for each op and why."""

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from mirnet_fast import backends, measure
from mirnet_fast.ops import OPS

from . import DEVICE, ON_GPU


def environment():
    result = measure.machine() | {"platform": platform.platform(), "cuda of torch": torch.version.cuda}
    names = ("pytest", "pytest_benchmark", "numpy", "ninja")
    result["missing packages"] = [name for name in names if importlib.util.find_spec(name) is None]
    result["interpreter"] = sys.executable
    if ON_GPU:
        p = torch.cuda.get_device_properties(0)
        names = [name for name in dir(p) if not name.startswith("_")]
        result |= {
            "GPUs": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            "properties": {name: str(getattr(p, name)) for name in names},
            "cudnn": torch.backends.cudnn.version(),
            "compute capability": f"{p.major}.{p.minor}",
            "multiprocessors": p.multi_processor_count,
            "GPU memory in MB": p.total_memory // 10**6,
            "L2 in MB": getattr(p, "L2_cache_size", 0) / 1e6,
            "driver": _first_line(
                "nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv"
            ),
        }
    result["compute-sanitizer"] = sanitizer()
    result["nvcc"] = shutil.which("nvcc")
    runs = {op: backends.explain(op, DEVICE, torch.float16) for op in OPS}
    result["runs"] = {op: next(b for b, why in reasons if why is None) for op, reasons in runs.items()}
    result["why not"] = {b: why for b, why in runs[OPS[0]] if why}
    print(json.dumps(result))


def sanitizer():
    """Path of compute-sanitizer, None where there is none."""
    places = [shutil.which("compute-sanitizer"), "/usr/local/cuda/bin/compute-sanitizer"]
    return next((place for place in places if place and Path(place).exists()), None)


def _first_line(*command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.splitlines() or [None])[-1]
