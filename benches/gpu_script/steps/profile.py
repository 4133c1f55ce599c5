"""Where a forward of the network loses its time: its kernels, and its steps."""

import contextlib
import dataclasses
import functools
import itertools
from collections import Counter

import bench_network as bench
import torch
from rows import shape
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

import mirnet_fast
from mirnet_fast import profiling
from mirnet_fast.engine import devices

from . import DEVICE, ON_GPU
from .cases import Case, run_cases, tell
from .network import networks
from .timing import made


def profile():
    sizes = bench.sizes()[:2] if ON_GPU else bench.sizes()
    dtype = torch.float16 if ON_GPU else torch.float32
    variants = {"eager channels_last": bench.eager_channels_last, "mirnet_fast": bench.fast}
    if ON_GPU:
        variants[bench.BY_TRITON] = bench.by_triton
    bench.VARIANTS |= variants
    cases = []
    for size, variant in itertools.product(sizes, variants):
        make = functools.cache(made(bench.prepare, variant, size, dtype))
        name = f"{variant} {shape(size)}"
        listed = functools.partial(_list_kernels, name, make)
        cases.append(Case(f"kernels of {name}", listed, functools.partial(_thrice, make)))
    backend_choices = ("triton", None) if ON_GPU else (None,)
    for size, backend in itertools.product(sizes, backend_choices):
        steps = functools.partial(_profile_steps, size, dtype, backend)
        cases.append(Case(f"steps {shape(size)}, backend {backend}", steps))
    run_cases(cases)


def _thrice(make):
    for _ in range(3):
        make()()


def _list_kernels(name, make):
    """The kernels of one forward, in their order, and what the GPU does otherwise."""
    call = make()
    call()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * ON_GPU) as seen:
        call()
        if ON_GPU:
            torch.cuda.synchronize()
    wanted = DeviceType.CUDA if ON_GPU else DeviceType.CPU
    events = [event for event in seen.events() if event.device_type == wanted]
    events.sort(key=lambda event: event.time_range.start)
    order = [(event.name[:150], round(event.time_range.elapsed_us(), 1)) for event in events]
    total = Counter()
    for kernel, us in order:
        total[kernel] += us
    counts = Counter(kernel for kernel, _ in order)
    by_name = [(kernel, counts[kernel], round(us, 1)) for kernel, us in total.most_common()]
    span = events[-1].time_range.end - events[0].time_range.start if events else 0
    text = f"{len(order)} on the GPU, {sum(total.values()):.0f} us in {span:.0f}"
    order = order if len(order) < 1000 else "too many"
    tell(f"kernels of {name}", text=text, by_name=by_name, order=order)


def _profile_steps(size, dtype, backend):
    """As `mirnet-fast profile` has it."""
    published, ours = networks(**bench.CONFIG)
    image = torch.rand(size, device=DEVICE).to(dtype).contiguous(memory_format=torch.channels_last)
    both = {profiling.OURS: ours.to(dtype), profiling.REFERENCE: published.to(dtype)}
    with mirnet_fast.use_backend(backend) if backend else contextlib.nullcontext():
        device = devices.measured(image.device, dtype)
        found, missing = profiling.profiles(both, image, device, rounds=3)
        for one in found:
            total, worst = one.total, [row for row in one.rows if row.lost is not None][:3]
            text = f"{1e3 * total.seconds:.2f} ms"
            if total.flops:
                text += f", {100 * total.flops / total.seconds / device.rate:.0f} % of the measured rate"
            text += "".join(f"; {row.name} loses {1e3 * row.lost:.2f} ms" for row in worst)
            tell(
                f"steps of {one.way} {shape(size)}, backend {backend}",
                text=text,
                device=dataclasses.asdict(device),
                rows=[dataclasses.asdict(row) for row in (*one.rows, total)],
                missing=missing,
                what=one.steps,
            )
