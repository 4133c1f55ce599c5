"""The published network, forward: time and peak memory of each way to run it."""

import copy
import functools
from concurrent.futures.process import BrokenProcessPool

import harness
import peers
import pytest
import rows
import settings
import torch

from mirnet_fast import MIRNet, measure, reference, use_backend

CONFIG = {"n_feat": 16, "n_RRG": 1, "n_MSRB": 1} if settings.TINY else {}


def eager(network, image):
    return lambda: network(image)


def eager_channels_last(network, image):
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    return eager(network, image.contiguous(memory_format=torch.channels_last))


def compiled(mode, network, image):
    torch.compiler.reset()
    network = copy.deepcopy(network).to(memory_format=torch.channels_last)
    # Tried on tiny maps it need not compile, which takes minutes.
    how = {"backend": "eager"} if settings.TINY else {"mode": mode}
    network = torch.compile(network, dynamic=False, **how)
    return eager(network, image.contiguous(memory_format=torch.channels_last))


def fast(network, image):
    fused = MIRNet(**CONFIG).eval()
    fused.load_state_dict(network.state_dict())
    return eager(fused.to(image.device, image.dtype), image)


def op_by_op(network, image):
    """Without a plan: the kernels are called from Python one by one."""
    call = fast(network, image)

    def forward():
        with torch.enable_grad():  # plans are for forwards without
            return call()

    return forward


def by_triton(network, image):
    """Every convolution by Triton, too, and not by cuDNN."""
    call = fast(network, image)

    def forward():
        with use_backend("triton"):
            return call()

    return forward


OP_BY_OP, BY_TRITON = f"{rows.FAST} op by op", f"{rows.FAST} triton"
# {variant: function of the reference network and an image, which returns the call to measure}
VARIANTS = {"eager NCHW": eager, "eager channels_last": eager_channels_last, rows.FAST: fast}
PAUSE = 0
if settings.DEVICE == "cpu":
    PAUSE = 0 if settings.TINY else 0.3
else:
    VARIANTS |= {OP_BY_OP: op_by_op, BY_TRITON: by_triton}
if settings.COMPILE == "1":
    VARIANTS |= {name: functools.partial(compiled, mode) for name, mode in harness.compiled_modes().items()}


def variants_of(dtype):
    """(VARIANTS with the peers that are installed, {name: why not} of the others)."""
    beside = settings.DEVICE == "cpu" and not settings.QUICK
    there, missing = peers.installed(dtype) if beside else ({}, {})
    return VARIANTS | there, missing


def sizes():
    if settings.TINY:
        return [(1, 3, 16, 16)]
    if settings.QUICK:
        return [(1, 3, 128, 128)]
    if settings.DEVICE == "cpu":
        return [(1, 3, 512, 512), (1, 3, 256, 256), (4, 3, 128, 128), (1, 3, 128, 128)]
    return [(1, 3, 256, 256), (1, 3, 512, 512), (8, 3, 256, 256)]


def _dtypes():
    dtypes = [torch.float32 if settings.DEVICE == "cpu" else torch.float16, torch.bfloat16]
    return dtypes[:1] if settings.QUICK else dtypes


def prepare(variant, size, dtype, threads, exact=False):
    """The call of one variant; equal arguments give equal weights, image and result.

    exact: in float64, of the weights and the image as `dtype` holds them.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = reference.MIRNet(**CONFIG).eval().to(settings.DEVICE, dtype)
    image = torch.rand(size).to(settings.DEVICE, dtype)
    if exact:
        network, image = network.double(), image.double()
    call = variants_of(dtype)[0][variant](network, image)

    def forward():
        with torch.inference_mode():
            return call()

    return forward


def peaks_of(variants, prepare, *arguments):
    """{"peak_mb": {variant: the peak above weights and image}}; each takes seconds, which QUICK has not."""
    if settings.QUICK:
        return {}
    return {"peak_mb": {name: _peak_mb_of(prepare, name, *arguments) for name in variants}}


def _peak_mb_of(prepare, *arguments):
    """In a fresh process; None if that was killed."""
    try:
        peak = measure.peak_memory(prepare, *arguments, device=settings.DEVICE)
    except BrokenProcessPool:
        return None
    return round(peak / 1e6)


@pytest.mark.parametrize("dtype", _dtypes(), ids=rows.dtype_name)
@pytest.mark.parametrize("size", sizes(), ids=rows.shape)
def test_network(benchmark, record, size, dtype):
    arguments = (size, dtype, torch.get_num_threads())
    names, no_peers = variants_of(dtype)
    variants = {name: prepare(name, *arguments) for name in names}
    missing = no_peers | harness.drop_failing_compilation(variants)
    harness.check_agreement(variants, dtype)
    times = harness.timed(benchmark, variants, {}, budget=1 if settings.TINY else 30, pause=PAUSE)
    if times is None:
        return
    row = rows.make_row("network", size, dtype, harness.FORWARD, times)
    row |= {"missing": missing} if missing else {}
    # The first call of a compiled one is the compiler's, and its memory too.
    called = [name for name in variants if not name.startswith("torch.compile")]
    record(row | peaks_of(called, prepare, *arguments), times)


@pytest.mark.parametrize("dtype", _dtypes(), ids=rows.dtype_name)
def test_network_error(keep, dtype):
    """How far each way is from the reference in float64, on the same weights and image; not timed."""
    size = min(sizes(), key=lambda size: size[0] * size[2] * size[3])
    names, missing = variants_of(dtype)
    arguments = (size, dtype, torch.get_num_threads())
    variants = {name: prepare(name, *arguments) for name in names}
    missing |= harness.drop_failing_compilation(variants)
    exact = prepare("eager NCHW", size, dtype, torch.get_num_threads(), exact=True)()
    error = {name: harness.error_of(run(), exact) for name, run in variants.items()}
    assert max(error.values()) < harness.TOLERANCE[dtype]
    row = rows.error_row("network_error", size, dtype, harness.FORWARD, error)
    keep(row | ({"missing": missing} if missing else {}))


@pytest.mark.skipif(settings.DEVICE != "cpu", reason="of the CPU's cores")
@pytest.mark.skipif(torch.get_num_threads() < 2, reason="one thread is all there is")
def test_network_threads(benchmark, record):
    """mirnet_fast on one thread and on all of them: `x 1 thread` is what they gain."""
    threads, size = torch.get_num_threads(), sizes()[:2][-1]
    forward = prepare(rows.FAST, size, torch.float32, threads)

    def on(count):
        def call():
            torch.set_num_threads(count)
            return forward()

        return call

    variants = {"1 thread": on(1), rows.FAST: on(threads)}
    try:
        harness.check_agreement(variants, torch.float32)
        times = harness.timed(benchmark, variants, {}, budget=1 if settings.TINY else 30)
    finally:
        torch.set_num_threads(threads)
    if times is not None:
        record(rows.make_row("network_threads", size, torch.float32, harness.FORWARD, times), times)
