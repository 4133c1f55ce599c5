"""Which implementation of a fused op runs: "cuda", "triton", "cpu" or "reference".

Without a choice of the user the first backend that has a kernel for the device and dtype runs,
and "reference" (plain PyTorch, always there) where none has. Where both "triton" and "cuda" have
one, preferences.json beside this file says which was measured to be faster: {name of the GPU:
{"op dtype": backend}}, as benches/gpu.py writes it. Convolutions are cuDNN's with a pass behind them unless
that table says, of one with so many inputs and outputs, at which numbers of pixels Triton's was faster:
{"conv3x3 float16 64 64": {"65536": "triton", ...}}. An explicit choice is kept or refused with the
reason: nothing falls back behind it.
"""

import contextlib
import functools
import importlib.util
import json
import math
import os
import threading
from collections.abc import Generator
from pathlib import Path

import torch
from torch.autograd import forward_ad

from . import _native

BACKENDS = ("triton", "cuda", "cpu", "reference")
VARIABLE, WINOGRAD_VARIABLE = "MIRNET_FAST_BACKEND", "MIRNET_FAST_WINOGRAD"
SWITCHES = {
    **dict.fromkeys(("1", "on", "true", "yes"), True),
    **dict.fromkeys(("0", "off", "false", "no"), False),
}
PREFERENCES = Path(__file__).with_name("preferences.json")

# What the kernels of a backend take; a backend that could not be loaded stands in _UNAVAILABLE.
_DEVICES = {"cuda": ("cuda",), "triton": ("cuda",), "cpu": ("cpu",)}
_DTYPES = {
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
    "triton": (torch.float32, torch.float16, torch.bfloat16),
    "cpu": (torch.float32, torch.bfloat16, torch.float64),
}
_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_UNAVAILABLE: dict[str, str] = {}
if importlib.util.find_spec("triton") is None:
    _UNAVAILABLE["triton"] = "Triton is not installed; try: pip install 'mirnet-fast[triton]'"
elif not torch.cuda.is_available() and not _INTERPRETED:
    _UNAVAILABLE["triton"] = "torch finds no GPU (TRITON_INTERPRET=1 runs the kernels without, slowly)"
if (_error := _native.cuda_library_error()) is not None:
    _UNAVAILABLE["cuda"] = _error
elif not torch.cuda.is_available():
    _UNAVAILABLE["cuda"] = "torch finds no GPU"
if (_error := _native.cpu_library_error()) is not None:
    _UNAVAILABLE["cpu"] = _error

_running = threading.local()  # what a forward in this thread began with
# Nothing in the environment stops the import: `problems` names what cannot be used, and ops raise it.
_forced = os.environ.get(VARIABLE) or None
_winograd = SWITCHES.get((os.environ.get(WINOGRAD_VARIABLE) or "on").lower())  # None: neither on nor off


class BackendError(RuntimeError):
    """A backend was asked for explicitly and cannot run, or an environment variable has a wrong value."""


def _why_not(name):
    """Why a backend of this name cannot be chosen, or None."""
    if name not in BACKENDS:
        return f"backend must be one of {', '.join(BACKENDS)}; got {name!r}"
    if name in _UNAVAILABLE:
        return f"backend {name!r} cannot run: {_UNAVAILABLE[name]}"
    return None


def problems() -> list[str]:
    """Sentences about environment variables whose values cannot be used; no op runs while there are any.

    `use_backend` and `use_winograd` take the place of what their variables say.
    """
    found = list(_native.PROBLEMS)
    if _winograd is None:
        value = os.environ[WINOGRAD_VARIABLE]
        found.append(
            f"environment variable {WINOGRAD_VARIABLE} must be one of {', '.join(SWITCHES)}; got {value!r}"
        )
    reason = None if _forced is None else _why_not(_forced)
    if reason is not None:
        found.append(f"environment variable {VARIABLE}: {reason}")
    return found


def check_environment() -> None:
    """
    Raises:
        BackendError: there are `problems`.
    """
    found = problems()
    if found:
        raise BackendError("; ".join(found))


class use_backend:
    """Run every fused op on one backend: for good, or for a `with` block.

    The choice holds for the whole process, all threads included (autograd runs backward in
    threads of its own); a module's forward that is running goes on with the one it began with.
    The environment variable MIRNET_FAST_BACKEND sets the initial choice;
    `use_backend(None)` returns to the automatic one.

    Raises:
        BackendError: the name is unknown, or the backend cannot run here; the reason is named.
            An op whose device or dtype the backend has no kernel for raises it when called.
    """

    def __init__(self, name: str | None) -> None:
        global _forced
        reason = None if name is None else _why_not(name)
        if reason is not None:
            causes = {"cpu": _native.cpu_library_exception, "cuda": _native.cuda_library_exception}
            raise BackendError(f"use_backend: {reason}") from causes.get(str(name))
        self._previous, _forced = _forced, name

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *exception: object) -> None:
        global _forced
        _forced = self._previous


class use_winograd:
    """Let inference on the CPU run 3x3 convolutions by Winograd's method, or not: for good, or in a `with`.

    It is on unless the environment variable MIRNET_FAST_WINOGRAD is 0, off, false or no. Its rounding
    errors are larger than a plain convolution's, up to 3e-6 of the output's norm in float32, its
    multiplications a quarter.
    """

    def __init__(self, wanted: bool) -> None:
        global _winograd
        self._previous, _winograd = _winograd, bool(wanted)

    def __enter__(self) -> "use_winograd":
        return self

    def __exit__(self, *exception: object) -> None:
        global _winograd
        _winograd = self._previous


@contextlib.contextmanager
def settings_kept() -> Generator[None]:
    """Inside, this thread's forwards see the settings as they are now, whatever other threads choose.

    A forward that changed its mind would combine what belongs to one way with what belongs to another.
    """
    if hasattr(_running, "settings"):
        yield
        return
    _running.settings = _forced, _winograd
    try:
        yield
    finally:
        del _running.settings


def _settings():
    return getattr(_running, "settings", None) or (_forced, _winograd)


def winograd() -> bool:
    """Whether `use_winograd` lets them run so."""
    return bool(_settings()[1])


def is_transformed() -> bool:
    """Whether a transform of torch.func (jvp, vmap, grad, ...) or forward-mode differentiation is active.

    The kernels have no rules for these; PyTorch's operators, the reference's, do.
    """
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


@functools.cache
def cpu_computes(dtype: torch.dtype) -> bool:
    """Whether this CPU has arithmetic in a float dtype; one that it lacks is only stored in."""
    return (
        dtype != torch.bfloat16 or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    )


def current_backend() -> str | None:
    """The backend chosen by the user, or None where the choice is automatic."""
    return _settings()[0]


def explain(op: str, device_type: str, dtype: torch.dtype) -> list[tuple[str, str | None]]:
    """[(backend, reason it does not run or None)] in order of preference; the first None runs."""
    order = _order(op, device_type, dtype)
    reasons = {backend: _obstacle(backend, device_type, dtype) for backend in order}
    first, second = order[:2]
    if reasons[first] is None and reasons[second] is None:
        faster = f"{first} was measured to be faster on this GPU"
        unknown = f"{first} comes first, because which is faster on this GPU was not measured"
        reasons[second] = faster if _measured(op, dtype) else unknown
    return list(reasons.items())


def _order(op, device_type, dtype):
    """The backends in order of preference."""
    if device_type == "cuda" and "cuda" not in _UNAVAILABLE and _measured(op, dtype) == "cuda":
        return ("cuda", "triton", *BACKENDS[2:])
    return BACKENDS


def _once_for_a_gpu(function):
    """The function, asked once for each GPU and arguments; torch.compile takes its answer as constant."""
    kept = functools.cache(lambda gpu, *args: function(*args))

    @functools.wraps(function)
    def answer(*args):
        return kept(torch.cuda.current_device(), *args)

    # As torch.compiler.assume_constant_result does, which would import all of torch._dynamo.
    answer._dynamo_marked_constant = True  # pyrefly: ignore[missing-attribute]
    return answer


def convolution(op: str, dtype: torch.dtype, inputs: int, outputs: int, pixels: int) -> str:
    """Which convolution runs on the current GPU, with what is fused behind it: "triton" or "cudnn".

    Args:
        op: "conv1x1", "conv3x3" or "conv_transpose3x3", the latter with all of the residual up tail.
        dtype: of the maps.
        inputs, outputs: channels.
        pixels: of the input, N * H * W.

    Returns:
        "triton" where it was measured to be faster at the nearest number of pixels, by ratio, that was
        measured of such a convolution on such a GPU, and may run; "cudnn" where it was not, and where nobody
        measured. An explicit choice of "triton" is kept, another is no wish for its convolutions.

    Raises:
        BackendError: an environment variable has a wrong value.
    """
    check_environment()
    if _obstacle("triton", "cuda", dtype) is not None:
        return "cudnn"
    if current_backend() == "triton":
        return "triton"
    measured = _measured_convolution(op, dtype, inputs, outputs)
    nearest = min(measured, key=lambda count: abs(math.log(int(count) / max(pixels, 1))), default=None)
    return measured.get(nearest, "cudnn")


@_once_for_a_gpu
def _measured_convolution(op, dtype, inputs, outputs):
    """{number of pixels: "triton" or "cudnn"} on the current GPU."""
    measured = _preferences().get(torch.cuda.get_device_name(), {})
    return measured.get(f"{op} {str(dtype).removeprefix('torch.')} {inputs} {outputs}", {})


@_once_for_a_gpu
def _measured(op, dtype):
    """Which of "triton" and "cuda" is faster on the current GPU, or None where nobody measured it."""
    name = torch.cuda.get_device_name()
    return _preferences().get(name, {}).get(f"{op} {str(dtype).removeprefix('torch.')}")


@functools.cache
def _preferences():
    return json.loads(PREFERENCES.read_text()) if PREFERENCES.exists() else {}


@_once_for_a_gpu
def _without_code():
    """Why the CUDA kernels cannot run on the current GPU, or None."""
    capability = torch.cuda.get_device_capability()
    if _native.cuda_code_for(capability):
        return None
    made = ", ".join(_native.build_info()["cuda_architectures"])
    return f"was compiled for {made}, and this GPU is sm_{capability[0]}{capability[1]}"


def _obstacle(backend, device_type, dtype):
    forced = current_backend()
    if forced is not None and backend != forced:
        return f"{forced!r} was chosen explicitly"
    if backend == "reference":
        return None
    if not torch.compiler.is_compiling() and is_transformed():
        return "has no kernels for torch.func or forward-mode differentiation"
    if backend in _UNAVAILABLE:
        return _UNAVAILABLE[backend]
    if device_type == "cpu" and backend == "triton" and _INTERPRETED:
        if forced != "triton":
            return "is only interpreted here, for tests: it has to be chosen explicitly"
    elif device_type not in _DEVICES[backend]:
        return f"has no kernels for device {device_type!r}"
    if dtype not in _DTYPES[backend]:
        return f"has no kernels for {dtype}"
    if backend == "cuda" and device_type == "cuda":
        return _without_code()
    return None


def pick(op: str, device_type: str, dtype: torch.dtype) -> str:
    """The backend that runs `op`.

    Raises:
        BackendError: the explicitly chosen backend has no kernel for this device or dtype, or an
            environment variable has a wrong value.
    """
    check_environment()
    forced, reason = current_backend(), None
    for backend in _order(op, device_type, dtype) if forced is None else (forced,):
        reason = _obstacle(backend, device_type, dtype)
        if reason is None:
            return backend
    raise BackendError(f"{op}: backend {forced!r} was chosen explicitly, but it {reason}")
