"""Triton's own launcher on a CUDA driver that only records: what a launch really passes, and what it takes.

The kernels are compiled for sm_90, their launches bound and packed by Triton as on a GPU, on tensors of the
CPU; nothing runs. A process that is to use it needs `environment()` from its start on.
"""

import ctypes
import fcntl
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "recording_driver"
COMPILER = "gcc"


def missing():
    """Why there can be no such driver here, or None."""
    return None if shutil.which(COMPILER) else f"no {COMPILER}"


def environment():
    """That of a process which uses the driver, which is built first."""
    import triton

    BUILD.mkdir(parents=True, exist_ok=True)
    source, library = Path(__file__).with_name("driver.c"), BUILD / "libcuda.so.1"
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
            command = [COMPILER, "-shared", "-fPIC", "-O1", "-I", headers, source, "-o", library]
            subprocess.run([*map(str, command), "-Wl,-soname,libcuda.so.1"], check=True)
            (BUILD / "libcuda.so").unlink(missing_ok=True)
            (BUILD / "libcuda.so").symlink_to(library.name)
    rest = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, [str(BUILD), os.environ.get("LD_LIBRARY_PATH")]))
    return rest | {
        "TRITON_LIBCUDA_PATH": str(BUILD),
        "LD_LIBRARY_PATH": path,
        "TRITON_CACHE_DIR": str(BUILD / "triton"),
    }


class _Launch(ctypes.Structure):
    _fields_ = [
        ("kernel", ctypes.c_char_p),
        ("blocks", ctypes.c_uint),
        ("threads", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("addresses", ctypes.c_int),
        ("address", ctypes.c_ulonglong * 48),
    ]


class Recorder:
    """The driver's record, of a process with its `environment()`."""

    def __init__(self):
        self._library = ctypes.CDLL("libcuda.so.1")
        self._launches = (_Launch * 65536).in_dll(self._library, "recorded_launches")

    def _number(self, name, kind=ctypes.c_long):
        return kind.in_dll(self._library, f"recorded_{name}")

    def clear(self):
        ctypes.memset(self._launches, 0, ctypes.sizeof(self._launches))
        for name in ("count", "waits", "copies", "refusals"):
            self._number(name).value = 0

    def keep_nothing(self):
        """From now on launches are only counted, so that little but the launcher takes time."""
        self._number("keeps", ctypes.c_int).value = 0

    def counts(self):
        """{what the host did: how often}."""
        return {name: self._number(name).value for name in ("count", "waits", "copies", "refusals")}

    def launches(self):
        """[(kernel, [address])] since `clear`."""
        kept = self._launches[: self._number("count").value]
        return [(one.kernel.decode(), one.address[: one.addresses]) for one in kept]


def use():
    """Let Triton take it for a GPU of sm_90, and the kernels' host side likewise."""
    from mirnet_fast.kernels import _configs
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia
    from triton.runtime import driver

    from mirnet_fast import backends

    class Driver(nvidia.CudaDriver):
        def __init__(self):
            self.utils, self.launcher_cls = nvidia.CudaUtils(), nvidia.CudaLauncher
            self.get_device_capability = lambda device: (9, 0)
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None
            self.get_current_stream = lambda device: 0

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

    driver.set_active(Driver())
    _configs._capability, _configs._multiprocessors = lambda index: (9, 0), lambda index: 132
    _configs._device_name, _configs._known = lambda index: "recorded", dict
    backends._UNAVAILABLE.pop("triton", None)
    return Recorder()
