"""The command `mirnet-fast`: compare, demo, restore, evaluate, train, patches, doctor."""

import dataclasses
import json
import os
import re
import signal
import sys
from collections import defaultdict
from pathlib import Path

import click

# Torch, SciPy and what needs them are imported in the commands: --help shall not take seconds.

# Names of the benchmarks: (channels, border in pixels that is not counted, None for the scale).
BENCHMARKS = {
    "sidd": ("rgb", 0),
    "dnd": ("rgb", 0),
    "realsr": ("y", None),
    "lol": ("rgb", 0),
    "fivek": ("rgb", 0),
}
SHAPE_OPTIONS = {
    "--n-feat": ("n_feat", "Channels at full resolution."),
    "--n-rrg": ("n_RRG", "Recursive residual groups."),
    "--n-msrb": ("n_MSRB", "Multi-scale residual blocks a group."),
    "--height": ("height", "Streams (resolutions) of a block."),
    "--width": ("width", "Columns of a block."),
}


class Size(click.ParamType):
    """A number of pixels, or "full", which is None."""

    name = "pixels"

    def convert(self, value, param, ctx):
        if value in ("full", "0"):
            return None
        try:
            size = int(value)
        except ValueError:
            size = -1
        if size < 1:
            self.fail(f"{value!r} is neither a number of pixels nor 'full'", param, ctx)
        return size


class Strength(click.ParamType):
    """A number from 0 to 1, or "auto"."""

    name = "0..1|auto"

    def convert(self, value, param, ctx):
        if value == "auto":
            return value
        try:
            number = float(value)
        except ValueError:
            number = -1
        if not 0 <= number <= 1:
            self.fail(f"{value!r} is neither a number from 0 to 1 nor 'auto'", param, ctx)
        return number


def network_options(command):
    """Options for the arguments of MIRNet, without which a checkpoint decides, and for its part to take."""
    command = click.option("--key", help="Which one, where WEIGHTS holds several: params_ema, net_g.")(
        command
    )
    for option, (name, description) in reversed(SHAPE_OPTIONS.items()):
        command = click.option(option, name, type=click.IntRange(1), help=description)(command)
    return command


class Device(click.ParamType):
    """A torch device that can be used here."""

    name = "device"

    def convert(self, value, param, ctx):
        import torch

        try:
            device = torch.empty(0, device=value).device
            torch.zeros(1, device=device).cpu()  # not from one without data, such as meta
        except Exception as error:  # AssertionError, ImportError and others, of other devices
            reason = re.split(r"\n|\. ", str(error).strip())[0]  # torch goes on for pages
            self.fail(f"{value!r} cannot be used: {reason}", param, ctx)
        return device


def _default_device():
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def device_option(command):
    return click.option(
        "--device",
        type=Device(),
        default=_default_device,
        show_default="cuda, or cpu where there is none",
    )(command)


def network_config(weights, options):
    """The arguments of MIRNet: the checkpoint's, or without one those of the options that were given."""
    from .checkpoints import CheckpointError, network_arguments

    key = options["key"]
    given = {name: value for name, value in options.items() if value is not None and name != "key"}
    if weights is None:
        if key is not None:
            raise click.UsageError("--key needs --weights")
        return given
    try:
        config = network_arguments(weights, key, **given)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    if (config["in_channels"], config["out_channels"]) != (3, 3):
        raise click.ClickException(f"{weights} is not a network from RGB images to RGB images")
    return config


class Command(click.Command):
    """A command that runs ops: one sentence, and not a traceback, where none can run or the chosen one.

    Its --help is answered before.
    """

    def invoke(self, ctx):
        from . import backends

        try:
            backends.check_environment()
            return super().invoke(ctx)
        except backends.BackendError as error:
            raise click.ClickException(str(error)) from error


class Group(click.Group):
    command_class = Command


@click.group(cls=Group)
@click.version_option(package_name="mirnet-fast")
def main():
    """MIRNet image restoration on fused kernels."""


@main.command()
@click.argument("image", required=False)
@click.option("--weights", help="A checkpoint (.pth, .safetensors); random weights without one.")
@click.option("--size", type=Size(), default="256", show_default=True, help="Centre crop, or 'full'.")
@click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, help="Timed rounds.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="compare", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; its own choice if not given.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the random weights.")
@device_option
@network_options
def compare(image, weights, size, rounds, out, threads, seed, device, **options):
    """Run the reference and mirnet_fast on one photo with the same weights.

    Prints the error of both against the reference in float64, after each part of the network, the
    time and the memory of both, and writes both pictures and their difference to OUT. The reference
    runs as published: NCHW, eager. Without IMAGE the photo is scikit-image's astronaut. The exit
    status is 1 if they do not agree.
    """
    import numpy as np
    import torch

    from . import comparison, inference, measure
    from .checkpoints import CheckpointError, load_checkpoint
    from .images import ImageError, Photo, read_photo, write_photo

    if threads is not None:
        torch.set_num_threads(threads)
    config = network_config(weights, options)
    try:
        rgb = _sample_photo() if image is None else read_photo(image).rgb
        networks = comparison.build(
            config,
            weights and (lambda network: load_checkpoint(network, weights, key=options["key"])),
            device,
            seed,
        )
        out.mkdir(parents=True, exist_ok=True)
    except (CheckpointError, ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error
    rgb = _centre_crop(rgb, size)
    height, width = rgb.shape[2:]
    padded = inference.pad_by_reflection(rgb, inference.size_multiple(networks["reference"])).to(device)

    _print_table(measure.machine().items())
    click.echo(f"\nphoto: {image or 'scikit-image astronaut'}, {width} x {height} pixels, float32, {device}")
    if weights is None:
        click.echo("weights: random, so this compares the computation; nothing is restored")
    else:
        click.echo(f"weights: {weights}")

    click.echo("(1/3) time", err=True)
    seconds = comparison.times(networks, padded, rounds)
    click.echo("(2/3) memory, each in a process of its own", err=True)
    peaks = comparison.memory(config, padded.shape, device)
    click.echo("(3/3) the reference in float64; at the published size this takes minutes on a CPU", err=True)
    errors, outputs = comparison.stage_errors(networks, padded)

    click.echo("\nrelative error against the reference in float64")
    _print_table([("", "reference", "mirnet_fast", "")], "  {:<12}{:>12}{:>14}  {}")
    _print_table(
        [
            (e.stage, f"{e.reference:.2e}", f"{e.mirnet_fast:.2e}", "" if e.agrees else "DISAGREES")
            for e in errors
        ],
        "  {:<12}{:>12}{:>14}  {}",
    )
    click.echo(f"\nmedian of {rounds} interleaved rounds, and peak memory of one forward pass")
    _print_table(
        [(name, f"{seconds[name]:.3f} s", _megabytes(peaks[name])) for name in networks],
        "  {:<12}{:>12}{:>14}",
    )

    pictures = {name: output[..., :height, :width].cpu() for name, output in outputs.items()}
    difference = (pictures["mirnet_fast"] - pictures["reference"]).abs()
    largest = difference.max().item()
    factor = 2.0 ** np.floor(np.log2(1 / largest)) if 0 < largest < np.inf else 1.0
    paths = []
    try:
        for name, picture in {**pictures, "difference": difference * factor}.items():
            paths.append(out / f"{name}.png")
            write_photo(paths[-1], Photo(picture))
    except ImageError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"\n{paths[-1]}: the absolute difference times {factor:.3g}")

    agree = all(error.agrees for error in errors)
    ratio = None if None in peaks.values() else peaks["mirnet_fast"] / max(peaks["reference"], 1)
    click.echo(
        f"{'agree' if agree else 'DO NOT AGREE'} "
        f"(error {errors[-1].mirnet_fast:.1e}, the reference's own {errors[-1].reference:.1e}); "
        f"mirnet_fast is {seconds['reference'] / seconds['mirnet_fast']:.2f} times as fast, "
        f"peak memory {'not measured' if ratio is None else f'{ratio:.2f} times'}; {paths[0]}, {paths[1]}"
    )
    if not agree:
        sys.exit(1)


@main.command()
@click.argument("image", required=False)
@click.option(
    "--sigma", type=click.FloatRange(0), default=25, show_default=True, help="Of Gaussian noise, of 255."
)
@click.option("--iso", type=click.FloatRange(1, 1e6), help="A camera's noise of this ISO instead, and JPEG.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="demo", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
def demo(image, sigma, iso, out, seed):
    """Add noise to a clean photo and take it out again, with the denoiser that comes with the package.

    The noisy photo is what a file of 8 bits holds. Prints PSNR and SSIM of the restored one, of
    scikit-image's non-local means and of BM3D (if the package bm3d is installed) and writes the
    pictures to OUT, and before, after and clean side by side. A camera's photo is compared with what the
    camera would make without noise. Without IMAGE the photo is scikit-image's astronaut, which the denoiser
    never saw.
    """
    import numpy as np
    import torch

    from . import demonstration
    from .images import ImageError, Photo, read_photo, write_photo

    try:
        rgb = _sample_photo() if image is None else read_photo(image).rgb
        out.mkdir(parents=True, exist_ok=True)
    except (ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error
    clean = rgb[0].permute(1, 2, 0).numpy()
    height, width = clean.shape[:2]
    noise = f"Gaussian noise of sigma {sigma:g}/255, saved in 8 bits"
    if iso:
        noise = f"noise of a camera at ISO {iso:g}, demosaiced, JPEG of quality 92"
    click.echo(f"photo: {image or 'scikit-image astronaut'}, {width} x {height} pixels, {noise}")
    try:
        if iso:
            noisy, clean = demonstration.as_a_camera(clean, iso, seed)
            sigma = 255 * float(np.std(noisy - clean))
        else:
            noisy = demonstration.add_noise(clean, sigma, seed)
        results = demonstration.compare(clean, noisy, sigma)
    except ImportError as error:
        raise click.ClickException(f"--iso: {error}; pip install 'mirnet-fast[train]'") from error
    except ValueError as error:  # too small for SSIM
        raise click.ClickException(str(error)) from error
    _print_table(
        [
            ("", "PSNR", "SSIM", "time"),
            *(
                (
                    name,
                    f"{result.score.psnr:.2f} dB",
                    f"{result.score.ssim:.4f}",
                    f"{result.seconds:.2f} s" if result.seconds else "",
                )
                for name, result in results.items()
            ),
        ],
        "  {:<18}{:>10}{:>10}{:>10}",
    )
    if "BM3D" not in results:
        click.echo("  BM3D was not compared: pip install bm3d (its licence is for non-commercial use)")
    paths = {name: out / f"{name.replace(' ', '_')}.png" for name in results}
    try:
        images = {paths[name]: result.image for name, result in results.items()} | {out / "clean.png": clean}
        side_by_side = [results["noisy"].image, results["mirnet_fast"].image, clean]
        images[out / "before_after_clean.png"] = np.concatenate(side_by_side, 1)
        for path, pixels in images.items():
            write_photo(path, Photo(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
    except ImageError as error:
        raise click.ClickException(str(error)) from error
    gain = results["mirnet_fast"].score.psnr - results["noisy"].score.psnr
    click.echo(f"{gain:+.2f} dB; before | after | clean: {out / 'before_after_clean.png'}")


@main.command()
@click.argument("inputs", nargs=-1, required=True, metavar="IN...")
@click.argument("output", metavar="OUT", type=click.Path())
@click.option("--task", help="What for, by a network that comes along; denoise if not given.")
@click.option("--weights", help="A checkpoint (.pth, .safetensors) instead of one that comes along.")
@click.option(
    "--strength",
    type=Strength(),
    show_default="auto for denoise, else 1",
    help="How much of the network's change to make; auto: by the noise of each image.",
)
@device_option
@network_options
def restore(inputs, output, task, weights, strength, device, **options):
    """Restore images of any size, 8 or 16 bit, grey or colour, with or without transparency.

    OUT is a file if there is one IN and OUT has a suffix, doesn't end in / and is no folder, else a folder
    that gets files of the same names. The network's shape is taken from the checkpoint. The exit status is 1
    if an image failed, and 130 after Ctrl-C; the others are written all the same.
    """
    from tqdm import tqdm

    from . import pretrained
    from .checkpoints import CheckpointError, load_checkpoint
    from .images import ImageError
    from .modules import MIRNet

    if weights is None:
        task = pretrained.DEFAULT if task is None else task
        if task not in pretrained.tasks():
            raise click.UsageError(
                f"--task must be one of those that come along, {', '.join(pretrained.tasks())}; got {task!r}"
            )
        weights = pretrained.weights_of(task)
        click.echo(f"weights: {weights.stem}, which comes with mirnet-fast, for the task {task} ({weights})")
    elif task is not None:
        raise click.UsageError("--task and --weights both choose the network; give one of them")
    if strength is None:
        strength = "auto" if task == "denoise" else 1.0
    elif strength == "auto" and task not in (None, "denoise"):
        raise click.UsageError(f"--strength auto goes by the noise and is for denoise; got --task {task}")
    config = network_config(weights, options)
    model = MIRNet(**config).eval()
    try:
        load_checkpoint(model, weights, key=options["key"])
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error
    model.to(device)
    names_folder, output = output.endswith(os.sep), Path(output)
    into_folder = len(inputs) > 1 or names_folder or output.is_dir() or not output.suffix
    try:
        (output if into_folder else output.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise click.ClickException(str(error)) from error

    given = {_identity(path) for path in inputs} - {None}
    written, failed, stopped = set(), 0, False
    try:
        for path in tqdm(inputs, unit="image", disable=None):
            target = output / Path(path).name if into_folder else output
            try:
                there = _identity(target)
                if there in given:
                    raise ImageError(f"{path}: the result would overwrite the input {target}")
                if there in written:
                    raise ImageError(f"{path}: the result would overwrite that of another input, {target}")
                _restore_file(model, path, target, device, strength)
                written.add(_identity(target))
            except (
                ImageError,
                OSError,
                RuntimeError,
                MemoryError,
            ) as error:  # RuntimeError: memory, of torch
                failed += 1
                message = str(error) if path in str(error) else f"{path}: {error}"
                tqdm.write(f"error: {message}", file=sys.stderr)
    except KeyboardInterrupt:
        stopped = True
    click.echo(f"{'stopped; ' * stopped}restored {len(written)} of {len(inputs)} images to {output}")
    if stopped or failed:
        sys.exit(130 if stopped else 1)


@main.command()
@click.argument("inputs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("targets", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--weights", help="A checkpoint; without one INPUTS are judged as they are.")
@click.option("--benchmark", type=click.Choice(sorted(BENCHMARKS)), help="Its channels and border.")
@click.option("--channels", type=click.Choice(["rgb", "y"]), help="Counted channels; rgb if not told.")
@click.option("--border", type=click.IntRange(0), help="Pixels along each side that do not count.")
@click.option("--ensemble", is_flag=True, help="The mean over eight orientations.")
@click.option("--lpips", is_flag=True, help="Also LPIPS, by the package lpips.")
@click.option(
    "--csv", "table", type=click.Path(dir_okay=False, path_type=Path), help="File for every photo's."
)
@device_option
@network_options
def evaluate(
    inputs, targets, weights, benchmark, channels, border, ensemble, lpips, table, device, **options
):
    """PSNR and SSIM of the photos in INPUTS, restored, against those of the same names in TARGETS.

    Both are judged as files of 8 bits a channel hold them. The exit status is 1 if a photo could not be
    judged, and 130 after Ctrl-C; the result is that of the others all the same.
    """
    from tqdm import tqdm

    from . import evaluation, inference
    from .checkpoints import CheckpointError, load_checkpoint
    from .images import ImageError, matching_photos, read_photo
    from .modules import MIRNet

    if benchmark and BENCHMARKS[benchmark][1] is None and border is None:
        raise click.UsageError(f"--benchmark {benchmark} needs --border, the scale of the super-resolution")
    channels = channels or (BENCHMARKS[benchmark][0] if benchmark else "rgb")
    run = inference.restore_by_ensemble if ensemble else inference.restore
    try:
        pairs = matching_photos(inputs, targets)
        model = None
        if weights is not None:
            model = MIRNet(**network_config(weights, options)).to(device)
            load_checkpoint(model, weights, key=options["key"])
        if table:
            table.parent.mkdir(parents=True, exist_ok=True)
    except (CheckpointError, ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error

    scores, stopped = [], False
    try:
        for given, target in tqdm(pairs, unit="photo", disable=None):
            try:
                restored = read_photo(given).rgb
                if model is not None:
                    restored = run(model, restored.to(device)).cpu()
                images = (t[0].permute(1, 2, 0).numpy() for t in (restored, read_photo(target).rgb))
                scores.append(evaluation.score(str(given), *images, channels, border or 0, lpips, device))
            except (ValueError, OSError, RuntimeError, MemoryError) as error:  # ImageError is a ValueError
                message = str(error) if str(given) in str(error) else f"{given}: {error}"
                tqdm.write(f"error: {message}", file=sys.stderr)
    except ImportError as error:  # of the package lpips
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        stopped = True
    if scores:
        count = f"{len(scores)}{f' of {len(pairs)}' if len(scores) < len(pairs) else ''}"
        result = evaluation.mean(scores)
        click.echo(f"{count} photos, {channels}, border {border or 0}{', ensemble of 8' * ensemble}")
        click.echo(
            f"PSNR {result.psnr:.2f} dB, SSIM {result.ssim:.4f}"
            + (f", LPIPS {result.lpips:.4f}" if lpips else "")
        )
        if table:
            try:
                evaluation.write_csv(table, scores)
            except OSError as error:
                raise click.ClickException(f"{table} was not written: {error.strerror or error}") from error
    if stopped or len(scores) < len(pairs):
        sys.exit(130 if stopped else 1)


def _training():
    try:
        from . import training
    except ImportError as error:
        raise click.ClickException(f"{error}; try: pip install 'mirnet-fast[train]'") from error
    return training


def _print_schema(context, parameter, wanted):
    if wanted:
        click.echo(json.dumps(_training().schema(), indent=2))
        context.exit()


@main.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="RECIPE's name if not given.")
@click.option("--threads", type=click.IntRange(1), help="Threads of torch; its own choice if not given.")
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_schema,
    help="Print the JSON schema of a recipe and exit.",
)
@device_option
def train(recipe, out, threads, device):
    """Train the network of RECIPE, a YAML file, in the folder OUT.

    OUT gets last.pt, with which the same command goes on after an interruption, best.safetensors, the
    weights of the best validation, pictures of it in samples, and log.csv, which TensorBoard shows, too
    (tensorboard --logdir OUT). Ctrl-C or SIGTERM saves last.pt first. On several GPUs:
    torchrun --nproc-per-node N -m mirnet_fast.cli train RECIPE
    """
    import torch

    from .images import ImageError

    training = _training()
    if threads is not None:
        torch.set_num_threads(threads)
    out = out or Path(recipe.stem)
    # What ends a job on a cluster is as good as Ctrl-C; and a shell's background jobs ignore that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    trainer = None
    try:
        with training.processes(device) as device:
            plan = training.read_recipe(recipe)
            trainer = training.Trainer(plan, out, device)
            parameters, flops = training.costs(trainer.recipe)
            if trainer.rank == 0:
                click.echo(f"{parameters:,} parameters, {flops / 1e9:.2f} GFLOP a patch of {plan.patch}²")
                click.echo(f"{device}, from step {trainer.step}, in {out}")
            trainer.run()
            if trainer.rank == 0 and trainer.validation:
                click.echo(f"best validation: {trainer.best:.2f} dB")
    except (training.RecipeError, training.TrainingError, ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        if trainer is None:
            click.echo("stopped before the first step", err=True)
        else:
            step, saved = trainer.step, trainer.saved
            place = "there" if saved == step else f"step {saved}"
            click.echo(f"stopped at step {step}; the same command goes on from {place}", err=True)
        sys.exit(130)


@main.command()
@click.argument("recipe", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", type=click.IntRange(1), default=512, show_default=True, help="Side of a window.")
@click.option("--stride", type=click.IntRange(1), help="From one window to the next; SIZE if not given.")
@click.option("--workers", type=click.IntRange(1), help="Threads; one a core if not given.")
def patches(recipe, folder, size, stride, workers):
    """Cut the pairs that RECIPE trains on into windows, written to FOLDER/input and FOLDER/target.

    For photos of many megapixels, such as those of SIDD: a recipe with `train: {kind: pairs, input:
    FOLDER/input, target: FOLDER/target}` then trains much faster than one that decodes whole photos.
    """
    from .images import ImageError

    training = _training()
    try:
        source = training.read_recipe(recipe).train
        if source.kind == "clean":
            raise click.ClickException(f"{recipe}: train has no pairs of photos, but clean ones")
        count = training.extract_patches(source, folder, size, stride or size, workers)
    except (training.RecipeError, ImageError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{count:,} pairs of {size} x {size} pixels in {folder}")


@main.command(cls=click.Command)
def doctor():
    """Print versions, devices, how the kernels were built, and what runs for each op and why."""
    import numpy as np
    import torch

    from . import _native, backends, measure
    from .ops import OPS

    problems = backends.problems()
    if problems:
        click.echo("no op runs until this is put right")
        for sentence in problems:
            click.echo(f"  {sentence}")
        click.echo()
    click.echo("machine and versions")
    _print_table([*measure.machine().items(), ("numpy", np.__version__)])
    click.echo("\nbuild")
    _print_table(_native.build_info().items())
    if _native.cpu_library_error() is not None:
        click.echo(f"  C++ kernels: {_native.cpu_library_error()}")
    untried = "loaded; so far tested on a CPU that emulates a GPU, and never run on a GPU by us"
    click.echo(f"  CUDA kernels: {_native.cuda_library_error() or untried}")
    forced = backends.current_backend()
    click.echo(f"\nbackend: {forced or 'automatic'}")
    if not problems:
        click.echo(f"Winograd's method on the CPU: {'on' if backends.winograd() else 'off'}")
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
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


def _in_bfloat16():
    import torch

    from . import backends

    if backends.cpu_computes(torch.bfloat16):
        return "bfloat16; the ops below are stored in it, and computed in float32"
    return "float32 and stored in bfloat16, in which this CPU does not compute; so are the ops below"


def _restore_file(model, path, target, device, strength):
    from tqdm import tqdm

    from . import inference, noise
    from .images import check_format, read_photo, write_photo

    photo = read_photo(path)
    check_format(target, photo)
    if strength == "auto":
        sigma = noise.estimate(photo.rgb)
        strength = noise.strength(sigma).item()
        tqdm.write(f"{path}: noise of {255 * sigma.item():.1f}/255, strength {strength:.2f}")
    restored = inference.restore(model, photo.rgb.to(device), strength=strength)
    write_photo(target, dataclasses.replace(photo, rgb=restored))


def _identity(path):
    """What all names of one file have in common; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _sample_photo():
    import skimage.data
    import torch

    pixels = torch.from_numpy(skimage.data.astronaut())
    return pixels.permute(2, 0, 1)[None].float() / 255


def _centre_crop(rgb, size):
    if size is None:
        return rgb
    top, left = (max(0, (have - size) // 2) for have in rgb.shape[2:])
    return rgb[..., top : top + size, left : left + size].contiguous()


def _megabytes(peak):
    return "killed" if peak is None else f"{peak / 2**20:.0f} MiB"


def _print_table(rows, template="  {:<22}{}"):
    for row in rows:
        click.echo(template.format(*map(str, row)).rstrip())


if __name__ == "__main__":
    main()
