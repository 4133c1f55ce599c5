"""mirnet-fast doctor: what is available, what runs, and why."""

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from ._common import network_config, network_options
from ._tables import heading, json_option, print_json, print_pairs

if TYPE_CHECKING:
    from ..modules import MIRNet
    from ..precision import Verdict


@click.command()
@click.option("--weights", help="A checkpoint (.pth, .safetensors); the published network without one.")
@click.option("--size", type=click.IntRange(1), default=256, show_default=True, help="Of a square image.")
@json_option("Print JSON; memory is in bytes.")
@network_options
def doctor(weights: str | None, size: int, as_json: bool, **options: Any) -> None:
    """Print what is available, and what runs and why.

    That is versions, devices and how the kernels were built; for each op the backend; and what a forward of
    the network does on the CPU, in float32: what of it is one plan, with how much memory, and what is not;
    and in which precision `restore` computes if not told.
    """
    import numpy as np
    import torch

    from .. import _native, backends, measure
    from ..checkpoints import CheckpointError, load_checkpoint
    from ..modules import MIRNet

    config = network_config(weights, options)
    problems = list(backends.problems())
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    found: dict[str, Any] = {
        "problems": problems,
        "machine": measure.machine() | {"numpy": np.__version__},
        "build": _native.build_info(),
        "libraries": {"cpu": _native.cpu_library_error(), "cuda": _native.cuda_library_error()},
        "backend": backends.current_backend() or "automatic",
        "winograd": None if problems else backends.winograd(),
        "ops": {device: _ops(device) for device in devices},
    }
    if not problems:
        model = MIRNet(**config).eval()
        if weights:
            try:
                load_checkpoint(model, weights, key=options["key"])
            except CheckpointError as error:
                raise click.ClickException(str(error)) from error
        found["weights"] = weights
        found["forward"] = _forward(model, size)
        found["precision"] = {device: _precision(model, device) for device in devices}
    (print_json if as_json else _print)(found)


def _ops(device: str) -> dict[str, Any]:
    """{dtype: {"ops": {op: {"runs": backend, "not": {backend: why}}}, "convolutions": in what}}"""
    import torch

    from .. import backends
    from ..ops import OPS

    found: dict[str, Any] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ops = {}
        for op in OPS:
            choices = backends.explain(op, device, dtype)
            ops[op] = {
                "runs": next((backend for backend, reason in choices if reason is None), None),
                "not": {backend: reason for backend, reason in choices if reason is not None},
            }
        told: dict[str, Any] = {"ops": ops}
        if device == "cpu" and dtype == torch.bfloat16:
            told["convolutions"] = _in_bfloat16()
        found[str(dtype).removeprefix("torch.")] = told
    return found


def _print(found: Mapping[str, Any]) -> None:
    if found["problems"]:
        heading("no op runs until this is put right")
        for sentence in found["problems"]:
            click.echo(f"  {sentence}")
        click.echo()
    heading("machine and versions")
    print_pairs(found["machine"].items())
    heading("\nbuild")
    print_pairs(found["build"].items())
    errors = found["libraries"]
    if errors["cpu"] is not None:
        click.echo(f"  C++ kernels: {errors['cpu']}")
    untried = "loaded; so far tested on a CPU that emulates a GPU, and never run on a GPU by us"
    click.echo(f"  CUDA kernels: {errors['cuda'] or untried}")
    heading(f"\nbackend: {found['backend']}")
    if found["winograd"] is not None:
        click.echo(f"Winograd's method on the CPU: {'on' if found['winograd'] else 'off'}")
    for device, dtypes in found["ops"].items():
        for dtype, told in dtypes.items():
            heading(f"\n{device}, {dtype}")
            if "convolutions" in told:
                click.echo(f"  convolutions: computed in {told['convolutions']}")
            alike = defaultdict(list)  # one entry for all ops with the same explanation
            for op, choice in told["ops"].items():
                alike[choice["runs"], tuple(choice["not"].items())].append(op)
            for (runs, others), names in alike.items():
                click.echo(f"  {runs or 'nothing'}: {', '.join(names)}")
                for backend, reason in others:
                    click.echo(f"      not {backend}: {reason}")
    if "forward" in found:
        weights = found["weights"]
        heading(f"\nthe network of {weights}" if weights else "\nthe network, with random weights")
        click.echo(str(found["forward"]))
        heading("\nprecision, if not told")
        for device, verdict in found["precision"].items():
            click.echo(f"  {device}: {verdict.precision}, because {verdict.reason}")


def _precision(model: "MIRNet", name: str) -> "Verdict":
    import torch

    from .. import precision
    from ..inference import size_multiple

    device = torch.empty(0, device=name).device
    return precision.automatic(model.to(device), device, multiple=size_multiple(model))


def _forward(model, size):
    """What a forward on the CPU does with a square image, as `restore` pads it, or why it fails."""
    from ..engine import explain
    from ..one_piece import padded_size, size_multiple

    multiple = size_multiple(model)
    side = padded_size(size, multiple)
    try:
        return explain(model, (1, 3, side, side))
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
