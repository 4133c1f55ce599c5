"""mirnet-fast profile: where a forward loses time."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from ._common import Command, device_option, network_config, network_options
from ._tables import heading, json_option, print_json, print_pairs, print_table

if TYPE_CHECKING:
    import torch

    from ..profiling import Prediction, Profile, Row

_SPARE = ("GFLOP", "MB", "predicted ms", "calls")  # what a narrow terminal does without


class Size(click.ParamType):
    """HEIGHTxWIDTH in pixels, or the side of a square."""

    name = "HxW"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        try:
            sides = [int(side) for side in value.lower().split("x")]
        except ValueError:
            sides = []
        if len(sides) not in (1, 2) or min(sides) < 1:
            self.fail(f"{value!r} is not HEIGHTxWIDTH in pixels, such as 256x256", param, ctx)
        return sides[0], sides[-1]


class Ways(click.ParamType):
    """Names of what else runs the network, with commas between them."""

    name = "reference,compile"
    names = ("reference", "compile")

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        ways = tuple(dict.fromkeys(value.split(",")))
        for way in ways:
            if way not in self.names:
                self.fail(f"{way!r} is not one of {', '.join(self.names)}", param, ctx)
        return ways


@click.command(cls=Command)
@click.option("--weights", help="A checkpoint (.pth, .safetensors); the published size without one.")
@click.option("--size", type=Size(), metavar="HxW", default="256x256", show_default=True, help="Of an image.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images at a time.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of image and weights.",
)
@click.option(
    "--compare",
    type=Ways(),
    metavar="reference,compile",
    help="What else to run: plain PyTorch, torch.compile.",
)
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Timed runs of each.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; its own choice if not given.")
@click.option("--layers", is_flag=True, help="Each layer by itself, not all of one kind and size.")
@click.option(
    "--predict", "gpu", metavar="GPU", help="Run nothing; what it should take on a GPU, such as H200."
)
@json_option("Print JSON, in seconds, FLOP and bytes.")
@device_option
@network_options
def profile(
    weights: str | None,
    size: tuple[int, int],
    batch: int,
    dtype: str,
    compare: tuple[str, ...] | None,
    rounds: int,
    threads: int | None,
    layers: bool,
    gpu: str | None,
    as_json: bool,
    device: "torch.device",
    **options: Any,
) -> None:
    """Time each step of a forward without gradients, beside what the device could do at best.

    Of each step: how often it runs, its time, the time lost against the roof (what a large bare matrix
    product and a large copy would take for the same FLOPs and bytes, both timed here first), FLOP, bytes,
    its share of the roof, and what the cost model predicts. What loses most comes first. FLOPs are those of
    convolutions and products as published; kernels that make fewer of them have a roof of their own. Another
    way than ours, or ours where there is no plan, is listed by operator.
    """
    import torch

    from .. import comparison, inference, profiling
    from ..checkpoints import CheckpointError, load_checkpoint
    from ..engine import devices
    from ..modules import MIRNet

    config = network_config(weights, options)
    kind = getattr(torch, dtype)
    with torch.device("meta"):
        network = MIRNet(**config)
    multiple = inference.size_multiple(network)
    if any(side % multiple for side in size):
        raise click.UsageError(f"--size must be multiples of {multiple}; got {size[0]}x{size[1]}")
    shape = (batch, 3, *size)
    if gpu is not None:
        _refuse_beside_predict()
        try:
            target = devices.published(gpu, kind)
        except ValueError as error:
            raise click.UsageError(f"--predict: {error}") from error
        prediction = profiling.predict(network, shape, kind, target, layers)
        given = {"size": shape, "dtype": dtype, "device": target}
        if as_json:
            print_json({**given, **dataclasses.asdict(prediction)})
        else:
            _print_prediction(prediction, gpu, shape, dtype)
        return

    if threads is not None:
        torch.set_num_threads(threads)
    names = {"reference": profiling.REFERENCE, "compile": profiling.COMPILED}
    ways = [profiling.OURS, *(names[way] for way in compare or ())]
    try:
        networks = comparison.build(
            config,
            None if weights is None else lambda net: load_checkpoint(net, weights, key=options["key"]),
        )
        for each in networks.values():
            each.to(device, kind)
        target = devices.measured(device, kind)
        image = torch.rand(shape).to(device, kind)
        profiles, missing = profiling.profiles(networks, image, target, ways, rounds, layers)
    except (CheckpointError, RuntimeError, MemoryError) as error:  # RuntimeError: memory, of torch
        raise click.ClickException(str(error).partition("\n")[0]) from error
    if as_json:
        print_json(
            {
                "size": shape,
                "dtype": dtype,
                "rounds": rounds,
                "machine": _machine(),
                "device": target,
                "profiles": profiles,
                "missing": missing,
            }
        )
        return
    print_pairs(_machine().items())
    click.echo(
        f"\n{_by(shape)}, {dtype}; measured: a product of {target.rate / 1e9:.4g} GFLOP/s, "
        f"a copy of {target.bandwidth / 1e9:.3g} GB/s, {1e6 * target.launch:.2g} µs from call to call"
    )
    for found in profiles:
        _print_profile(found, rounds)
    for way, reason in missing.items():
        click.echo(f"\n{way} is left out: {reason}")


def _refuse_beside_predict():
    context = click.get_current_context()
    for name in ("compare", "rounds", "threads", "device"):
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is for what runs, and --predict runs nothing; leave one out")


def _machine():
    from .. import measure

    return measure.machine()


def _print_profile(found: "Profile", rounds: int) -> None:
    total = found.total
    heading(f"\n{found.way}: {_scaled(total.seconds, 1e3)} ms, the median of {rounds}; {found.steps}")
    head = ("", "calls", "ms", "lost ms", "GFLOP", "GFLOP/s", "MB", "GB/s", "of roof", "predicted ms")
    print_table(head, map(_measured, [*found.rows, total]), _SPARE, _total_in_bold)


def _measured(row: "Row") -> Sequence[object]:
    return (
        row.name,
        row.calls or "",
        _scaled(row.seconds, 1e3),
        _scaled(row.lost, 1e3),
        _scaled(row.flops, 1e-9),
        _scaled(_ratio(row.flops, row.seconds), 1e-9),
        _scaled(row.nbytes, 1e-6),
        _scaled(_ratio(row.nbytes, row.seconds), 1e-9),
        _share(row.floor, row.seconds),
        _scaled(row.predicted, 1e3),
    )


def _print_prediction(prediction: "Prediction", gpu: str, shape: tuple[int, ...], dtype: str) -> None:
    total, pixels = prediction.total, shape[0] * shape[2] * shape[3]
    click.echo(f"{_by(shape)}, {dtype}, {gpu}: predicted by the cost model, nothing of it measured")
    head = ("", "launches", "predicted ms", "GFLOP", "MB", "of roof")
    rows = [
        (
            row.name,
            row.calls,
            _scaled(row.predicted, 1e3),
            _scaled(row.flops, 1e-9),
            _scaled(row.nbytes, 1e-6),
            _share(row.floor, row.predicted),
        )
        for row in (*prediction.rows, total)
    ]
    print_table(head, rows, _SPARE, _total_in_bold)
    click.echo(
        f"{total.calls} launches, {_scaled(total.predicted, 1e3)} ms, "
        f"{prediction.peak_bytes / pixels / 1e3:.3f} GB for a million pixels above weights, image and result"
    )


def _total_in_bold(row):
    return "bold" if row[0] == "total" else ""


def _by(shape):
    return "x".join(map(str, shape))


def _ratio(value, seconds):
    return value / seconds if value and seconds else None


def _scaled(value, factor):
    return "" if value is None else f"{factor * value:.3f}"


def _share(floor, seconds):
    return f"{100 * floor / seconds:.0f} %" if floor and seconds else ""
