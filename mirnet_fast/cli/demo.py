"""mirnet-fast demo: noise added to a photo, and taken out again."""

from pathlib import Path

import click

from ._common import Command, sample_photo
from ._tables import print_table


@click.command(cls=Command)
@click.argument("image", required=False)
@click.option(
    "--sigma", type=click.FloatRange(0), default=25, show_default=True, help="Of Gaussian noise, of 255."
)
@click.option("--iso", type=click.FloatRange(1, 1e6), help="A camera's noise of this ISO instead, and JPEG.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default="demo", show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the noise.")
def demo(image: str | None, sigma: float, iso: float | None, out: Path, seed: int) -> None:
    """Add noise to a clean photo and take it out again, with the denoiser that comes with the package.

    The noisy photo is what a file of 8 bits holds. Prints PSNR and SSIM of the restored one, of
    scikit-image's non-local means and of BM3D (if the package bm3d is installed) and writes the
    pictures to OUT, and before, after and clean side by side. A camera's photo is compared with what the
    camera would make without noise. Without IMAGE the photo is scikit-image's astronaut, which the denoiser
    never saw.
    """
    import numpy as np
    import torch

    from .. import demonstration
    from ..images import ImageError, Photo, read_photo, write_photo

    try:
        rgb = sample_photo() if image is None else read_photo(image).rgb
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
    print_table(
        ("", "PSNR", "SSIM", "time"),
        (
            (
                name,
                f"{result.score.psnr:.2f} dB",
                f"{result.score.ssim:.4f}",
                f"{result.seconds:.2f} s" if result.seconds else "",
            )
            for name, result in results.items()
        ),
        style=lambda row: "bold" if row[0] == "mirnet_fast" else "",
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
