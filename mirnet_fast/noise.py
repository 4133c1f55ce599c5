"""How noisy a photo is, and how much of a denoiser's change that calls for."""

from collections.abc import Callable

import torch
import torch.nn.functional as F

# Standard deviations in units of full scale: up to the first none of the change is made, from the second on
# all of it. Of eight photos six are estimated at up to 1.7/255 when clean, one with the grain of a film at
# 2.8, one with fur all over at 5.3; with white noise of 3/255 all at 2.8 or more, of 5/255 at 4.6 or more,
# and with a sensor's that demosaicing, gamma and JPEG turned into an error of about 8/255 at 3.3 or more.
NONE, FULL = 1.5 / 255, 3.5 / 255

BLOCK = 16  # pixels
MOST = 48  # blocks along each side that are looked at, evenly spread
SHARE = 0.05  # of the blocks are in the photo's flattest parts
CLIPPED = 1 / 8  # of a block's pixels: more would hide its noise


def estimate(image: torch.Tensor) -> torch.Tensor:
    """The standard deviation of the noise of each photo, in the units of its values.

    What a photo's flattest parts vary, from pixel to pixel or from 2 x 2 pixels to the next: of the two the
    larger, for demosaicing and JPEG take noise out of the finest scale. Where noise varies with brightness
    that is its lower end, and texture all over, such as fur, passes for noise.

    Blocks of which many pixels are at 0 or below or at 1 or above hide noise, and count only where there are
    no others; areas of any other single colour count as free of it. A photo of less than 16 x 16 pixels is
    too small to tell noise from what it shows: 0.

    Args:
        image: (N, C, H, W) floats from 0 to 1.

    Returns:
        (N,) float32 on the image's device.

    Raises:
        TypeError: `image` is no tensor of floats.
        ValueError: `image` has not four dimensions, or a value that is not finite.

    Source: the mask and its norm are those of Immerkær, "Fast noise variance estimation", CVIU 1996; the
    flattest blocks stand for all as in Olsen, "Estimation of noise in images: an evaluation", CVGIP 1993.
    """
    if not isinstance(image, torch.Tensor) or not image.is_floating_point():
        kind = getattr(image, "dtype", type(image).__name__)
        raise TypeError(f"noise.estimate: image must be a tensor of floats from 0 to 1; got {kind}")
    if image.dim() != 4:
        raise ValueError(f"noise.estimate: image must be (N, C, H, W); got {tuple(image.shape)}")
    image = image.detach()
    if image.numel() and not torch.stack(image.aminmax()).isfinite().all():
        raise ValueError("noise.estimate: image has values that are not finite")
    if min(image.shape[2:]) < BLOCK:
        return torch.zeros(len(image), device=image.device)
    blocks = _blocks(image).float()
    halves = 2 * F.avg_pool2d(blocks.flatten(1, 2), 2).unflatten(1, blocks.shape[1:3])
    variance = torch.maximum(_variance(blocks), _variance(halves))
    clipped = ((blocks <= 0) | (blocks >= 1)).float().mean((-2, -1)) > CLIPPED
    flattest = variance.masked_fill(clipped, torch.nan).nanquantile(SHARE, -1).nanmean(1)
    return flattest.where(~flattest.isnan(), variance.quantile(SHARE, -1).mean(1)).sqrt()


def sampled(rows: Callable[[int, int], torch.Tensor], height: int, width: int) -> torch.Tensor:
    """The parts that `estimate` looks at of an image that is not in memory: (1, C, h, w), at most 768 a side.

    `estimate` gives the same for them as for all.

    Args:
        rows: rows(begin, end) is (1, C, end - begin, width) of the image.
    """
    if min(height, width) < BLOCK:
        return rows(0, height)
    columns = _places(width, "cpu").flatten()
    places = _places(height, "cpu").tolist()
    return torch.cat([rows(place[0], place[-1] + 1)[..., columns] for place in places], 2)


def strength(sigma: torch.Tensor) -> torch.Tensor:
    """How much of a denoiser's change to make, from 0 to 1, for a tensor of what `estimate` gives.

    Rises smoothly from 0 at NONE to 1 at FULL.
    """
    part = ((sigma - NONE) / (FULL - NONE)).clamp(0, 1)
    return part * part * (3 - 2 * part)


def _blocks(image):
    """Blocks of a photo, (N, C, blocks, BLOCK, BLOCK)."""
    rows, columns = (_places(size, image.device) for size in image.shape[2:])
    return image[:, :, rows[:, None, :, None], columns[None, :, None, :]].flatten(2, 3)


def _places(size, device):
    first = torch.linspace(0, size - BLOCK, min(size // BLOCK, MOST), device=device).long()
    return first[:, None] + torch.arange(BLOCK, device=device)


def _variance(blocks):
    """That of white noise, by the mask [1 -2 1]' [1 -2 1], which planes and straight edges don't pass."""
    return (blocks.diff(n=2, dim=-1).diff(n=2, dim=-2) / 6).square().mean((-2, -1))
