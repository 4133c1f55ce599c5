"""How good restored photos are: PSNR and SSIM as the benchmarks define them, LPIPS by its own package."""

import csv
import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import skimage.color
import skimage.metrics
import torch

from ._files import replaced


@dataclass(frozen=True)
class Score:
    """Of one photo: PSNR in dB, SSIM, and LPIPS (AlexNet) or None."""

    name: str
    psnr: float
    ssim: float
    lpips: float | None = None


def as_file(image: np.ndarray) -> np.ndarray:
    """The image as a file of 8 bits a channel holds it: float64 (H, W, 3) from 0 to 1, in steps of 1/255."""
    return np.round(255 * np.clip(np.asarray(image, np.float64), 0, 1)) / 255


def luma(rgb: np.ndarray) -> np.ndarray:
    """Y of ITU-R BT.601 in studio range, (H, W) from 16/255 to 235/255, which super-resolution counts."""
    return skimage.color.rgb2ycbcr(rgb)[:, :, 0] / 255


def psnr(restored: np.ndarray, target: np.ndarray) -> float:
    """10 log10(1 / mean squared error) in dB, of images from 0 to 1; infinite if they are equal."""
    error = np.mean((np.asarray(restored, np.float64) - target) ** 2)
    return float("inf") if error == 0 else float(-10 * np.log10(error))


def ssim(restored: np.ndarray, target: np.ndarray) -> float:
    """Mean structural similarity, Gaussian window of sigma 1.5 cut at 11 pixels (Wang et al., IEEE TIP 2004).

    Of colour images the mean of the channels'.

    Raises:
        ValueError: a side is smaller than the window.
    """
    if min(target.shape[:2]) < 11:
        raise ValueError(f"ssim: needs 11 x 11 pixels; got {target.shape[1]} x {target.shape[0]}")
    return float(
        skimage.metrics.structural_similarity(
            restored,
            target,
            data_range=1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            channel_axis=2 if target.ndim == 3 else None,
        )
    )


@functools.cache
def _lpips(device):
    import lpips

    return lpips.LPIPS(net="alex", verbose=False).to(device).eval()


def lpips_distance(restored: np.ndarray, target: np.ndarray, device: torch.device | str = "cpu") -> float:
    """Learned perceptual distance of two (H, W, 3) images from 0 to 1 (Zhang et al., CVPR 2018).

    Raises:
        ImportError: the package lpips is not installed.
    """
    pair = (
        torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None] * 2 - 1)).float()
        for image in (restored, target)
    )
    with torch.inference_mode():
        return float(_lpips(str(device))(*(t.to(device) for t in pair)))


def score(
    name: str,
    restored: np.ndarray,
    target: np.ndarray,
    channels: str = "rgb",
    border: int = 0,
    with_lpips: bool = False,
    device: torch.device | str = "cpu",
) -> Score:
    """The Score of a restored photo, (H, W, 3) from 0 to 1, both as 8 bits hold them.

    Args:
        channels: "rgb", or "y" for the luma alone.
        border: pixels along each side that are not counted.

    Raises:
        ValueError: the photos differ in size, or too little for SSIM is left inside the border.
    """
    if restored.shape != target.shape:
        raise ValueError(
            f"{name}: restored is {restored.shape[1]} x {restored.shape[0]} pixels, "
            f"target {target.shape[1]} x {target.shape[0]}"
        )
    restored, target = as_file(restored), as_file(target)
    distance = lpips_distance(restored, target, device) if with_lpips else None
    if channels == "y":
        restored, target = luma(restored), luma(target)
    if border:
        inside = slice(border, -border)
        restored, target = restored[inside, inside], target[inside, inside]
    if 0 in target.shape:
        raise ValueError(f"{name}: nothing is left inside a border of {border} pixels")
    try:
        return Score(name, psnr(restored, target), ssim(restored, target), distance)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def mean(scores: Sequence[Score]) -> Score:
    """The Score of all photos together, each counting the same."""
    distances = [s.lpips for s in scores if s.lpips is not None]
    return Score(
        "mean",
        float(np.mean([s.psnr for s in scores])),
        float(np.mean([s.ssim for s in scores])),
        float(np.mean(distances)) if len(distances) == len(scores) else None,
    )


def write_csv(path: str | Path, scores: Sequence[Score]) -> None:
    """One row a photo, and their mean; the file is written whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replaced(path) as new, new.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["name", "psnr", "ssim", "lpips"])
        writer.writeheader()
        writer.writerows(asdict(s) for s in [*scores, mean(scores)])
