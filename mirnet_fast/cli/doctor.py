"""mirnet-fast doctor: what is available, what runs, and why."""

from collections import defaultdict
from typing import Any

import click

from ._common import network_config, network_options, print_table


@click.command()
@click.option("--weights", help="A checkpoint (.pth, .safetensors); the published network without one.")
@click.option("--size", type=click.IntRange(1), default=256, show_default=True, help="Of a square image.")
@network_options
def doctor(weights: str | None, size: int, **options: Any) -> None:
    """Print what is available, and what runs and why.

    That is versions, devices and how the kernels were built; for each op the backend; and what a forward of
    the network does on the CPU, in float32: what of it is one plan, with how much memory, and what is not;
    and in which precision `restore` computes if not told.
    """
    import numpy as np
    import torch

    from .. import _native, backends, measure, precision
    from ..checkpoints import CheckpointError, load_checkpoint
    from ..inference import size_multiple
    from ..modules import MIRNet
    from ..ops import OPS

    config = network_config(weights, options)
    problems = backends.problems()
    if problems:
        click.echo("no op runs until this is put right")
        for sentence in problems:
            click.echo(f"  {sentence}")
        click.echo()
    click.echo("machine and versions")
    print_table([*measure.machine().items(), ("numpy", np.__version__)])
    click.echo("\nbuild")
    print_table(_native.build_info().items())
    if _native.cpu_library_error() is not None:
        click.echo(f"  C++ kernels: {_native.cpu_library_error()}")
    untried = "loaded; so far tested on a CPU that emulates a GPU, and never run on a GPU by us"
    click.echo(f"  CUDA kernels: {_native.cuda_library_error() or untried}")
    forced = backends.current_backend()
    click.echo(f"\nbackend: {forced or 'automatic'}")
    if not problems:
        click.echo(f"Winograd's method on the CPU: {'on' if backends.winograd() else 'off'}")
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            click.echo(f"\n{device}, {str(dtype).removeprefix('torch.')}")
            if device == "cpu" and dtype == torch.bfloat16:
                click.echo(f"  convolutions: computed in {_in_bfloat16()}")
            ops = defaultdict(list)  # one entry for all ops with the same explanation
            for op in OPS:
                ops[tuple(backends.explain(op, device, dtype))].append(op)
            for choices, names in ops.items():
                chosen = next((backend for backend, reason in choices if reason is None), "nothing")
                click.echo(f"  {chosen}: {', '.join(names)}")
                for backend, reason in choices:
                    if reason is not None:
                        click.echo(f"      not {backend}: {reason}")
    if not problems:
        click.echo(f"\nthe network of {weights}" if weights else "\nthe network, with random weights")
        model = MIRNet(**config).eval()
        if weights:
            try:
                load_checkpoint(model, weights, key=options["key"])
            except CheckpointError as error:
                raise click.ClickException(str(error)) from error
        click.echo(_forward(model, size))
        click.echo("\nprecision, if not told")
        for name in devices:
            device = torch.empty(0, device=name).device
            verdict = precision.automatic(model.to(device), device, multiple=size_multiple(model))
            click.echo(f"  {name}: {verdict.precision}, because {verdict.reason}")


def _forward(model, size):
    """What a forward on the CPU does with a square image, as `restore` pads it."""
    from ..engine import explain
    from ..inference import size_multiple

    multiple = size_multiple(model)
    side = -(-size // multiple) * multiple
    try:
        return str(explain(model, (1, 3, side, side)))
    except RuntimeError as error:  # BackendError, and torch's of memory
        return f"a forward without gradients fails: {error}"


def _in_bfloat16():
    import torch

    from .. import _native, backends
    from ..ops.convolution import has_amx, uses_amx

    stored = "float32 and stored in bfloat16"
    ours = backends.winograd() and backends.pick("conv3x3", "cpu", torch.bfloat16) == "cpu"
    products = _native.isa_active() in ("avx512_bf16", "amx")
    if ours and uses_amx():
        return "bfloat16 by AMX, as the products in the ops below; so far tested on an emulated unit"
    if ours and not has_amx():
        others = "1x1 and transposed ones, as the products in the ops below, in bfloat16 by AVX512-BF16"
        return f"{stored}, which here is faster; {others if products else 'so are the ops below'}"
    if backends.cpu_computes(torch.bfloat16):
        how = "their products in it too" if products else "computed in float32"
        return f"bfloat16; the ops below are stored in it, and {how}"
    return f"{stored}, in which this CPU does not compute; so are the ops below"
