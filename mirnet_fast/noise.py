"""How noisy a photo is, by what a denoiser takes from it, and how much of that to take."""

from collections.abc import Callable

import torch
from torch import nn

# Standard deviations in units of full scale: up to the first none of the change is made, from the second on
# all of it. Of 36 clean photos as in training, some of fur, grass, brick and gravel all over, 34 are at less
# than 0.8/255, none is above 1.1; with white noise of 5/255, or a camera's at ISO 1600 and JPEG, all are at
# 1.9 or more; with noise of 10/255 in a JPEG of quality 85 all but five of such texture at 1.6 or more.
NONE, FULL = 1.0 / 255, 2.0 / 255

BLOCK = 16  # pixels
SHARE = 0.05  # of the blocks are those from which least was taken
WINDOW, WINDOWS = 192, 4  # pixels; along each side
CLIPPED = 1 / 8  # of a block's pixels: more would hide its noise


def estimate(image: torch.Tensor, restored: torch.Tensor) -> torch.Tensor:
    """The standard deviation of the noise of each photo, in the units of its values.

    What a denoiser took from those blocks from which it took least. It tells noise from texture better than a
    filter of the photo does; and noise is everywhere, but texture that is taken for noise is not. Where noise
    varies, as with brightness, that is its lower end.

    Blocks hide noise that are of one value or many pixels of which are at 0 or below or at 1 or above; they
    count only where there are no others.

    Args:
        image: (N, C, H, W) floats from 0 to 1.
        restored: what a denoiser made of it at full strength, of its shape and device.

    Returns:
        (N,) float32 on the image's device.

    Raises:
        TypeError: one of them is no tensor of floats.
        ValueError: they are not (N, C, H, W) of one shape, or have values that are not finite.
    """
    for name, given in (("image", image), ("restored", restored)):
        if not isinstance(given, torch.Tensor) or not given.is_floating_point():
            kind = getattr(given, "dtype", type(given).__name__)
            raise TypeError(f"noise.estimate: {name} must be a tensor of floats from 0 to 1; got {kind}")
        if given.dim() != 4 or given.shape != image.shape:
            like = "" if given is image else f", as image, {tuple(image.shape)}"
            raise ValueError(f"noise.estimate: {name} must be (N, C, H, W){like}; got {tuple(given.shape)}")
        if given.numel() and not torch.stack(given.aminmax()).isfinite().all():
            raise ValueError(f"noise.estimate: {name} has values that are not finite")
    image, restored = image.detach().float(), restored.detach().float()
    block = [min(BLOCK, side) for side in image.shape[2:]]
    taken, clipped = (
        nn.functional.avg_pool2d(pixels, block).flatten(2)
        for pixels in ((restored - image).square(), ((image <= 0) | (image >= 1)).float())
    )
    brightest, darkest = (nn.functional.max_pool2d(pixels, block).flatten(2) for pixels in (image, -image))
    hidden = (clipped > CLIPPED) | (brightest == -darkest)
    least = taken.masked_fill(hidden, torch.nan).nanquantile(SHARE, -1).nanmean(1)
    return least.where(~least.isnan(), taken.quantile(SHARE, -1).mean(1)).sqrt()


def sampled(rows: Callable[[int, int], torch.Tensor], height: int, width: int) -> torch.Tensor:
    """Windows of an image that is not in memory: (N, C, h, w), up to 4 x 4 of 192 x 192 pixels, in a grid.

    Args:
        rows: rows(begin, end) is (1, C, end - begin, width) of the image.
    """
    bands = (rows(top, min(top + WINDOW, height)) for top in _places(height))
    return torch.cat([band[..., left : left + WINDOW] for band in bands for left in _places(width)])


def together(windows: torch.Tensor) -> torch.Tensor:
    """(1, C, h, N w), for `estimate`, of what `sampled` gives or of what became of that."""
    return windows.permute(1, 2, 0, 3).flatten(2)[None]


def strength(sigma: torch.Tensor) -> torch.Tensor:
    """How much of a denoiser's change to make, from 0 to 1, for a tensor of what `estimate` gives.

    Rises smoothly from 0 at NONE to 1 at FULL.
    """
    part = ((sigma - NONE) / (FULL - NONE)).clamp(0, 1)
    return part * part * (3 - 2 * part)


def _places(size):
    """Where windows begin along a side."""
    return torch.linspace(0, size - min(size, WINDOW), min(-(-size // WINDOW), WINDOWS)).long().tolist()
