"""What is done to photos to see how well they are restored, beside which tools, and what is asked there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import other_camera
import plain_tools
from pictures import as_pixels
from PIL import Image

from mirnet_fast import demonstration, evaluation
from mirnet_fast.training import degradations

BEFORE, BM3D = "before", "BM3D"


@dataclass(frozen=True)
class Condition:
    """A way to spoil photos, and what is asked of a network there.

    Attributes:
        name: for the tables.
        spoil: function of a clean photo and a seed; what the methods get, and what they are judged against.
        tools: function of these two; gives {name: plain_tools.Tool} to judge beside the network.
        gain: dB that the network must gain on every photo, if any.
        rivals: methods that it must be ahead of on every photo, under all conditions of the section.
        lead: and by so many dB on average, if any.
        pictured: whether a picture is made of it.
    """

    name: str
    spoil: Callable
    tools: Callable
    gain: float | None = None
    rivals: tuple = ()
    lead: float | None = None
    pictured: bool = False


def jpeg(rgb, quality):
    """The photo out of a JPEG file of that quality."""
    step = degradations.Jpeg(kind="jpeg", quality=(quality, quality))
    return step.apply(evaluation.as_file(rgb), np.random.default_rng(0))


def _white(sigma):
    return Condition(
        f"sigma {sigma}",
        lambda clean, seed: (demonstration.add_noise(clean, sigma, seed), clean),
        lambda given, target: {BM3D: plain_tools.bm3d(sigma)},
        rivals=(BM3D,),
        lead=0.3,
        pictured=sigma == 25,
    )


def _smoothing(given, target):
    return plain_tools.SMOOTHING


def _bm3d_and_smoothing(given, target):
    # Told how much was added, as far as a single number tells it.
    deviation = round(255 * float(np.sqrt(np.mean((given - target) ** 2))), 1)
    return {BM3D: plain_tools.bm3d(deviation), **plain_tools.SMOOTHING}


def _white_jpeg(sigma, quality, gain):
    def spoil(clean, seed):
        return jpeg(demonstration.add_noise(clean, sigma, seed), quality), clean

    return Condition(f"sigma {sigma}, then JPEG {quality}", spoil, _smoothing, gain)


def _photos_of(camera, finish):
    """Function of a clean photo and a seed: how the camera takes it with noise and without, finished."""

    def spoil(clean, seed):
        takes = (camera.apply(clean, np.random.default_rng(seed), noise) for noise in (True, False))
        return tuple(finish(take) for take in takes)

    return spoil


def _camera(name, camera, gain, pictured=False):
    spoil = _photos_of(camera, lambda photo: jpeg(photo, 92))
    # BM3D takes as long as all the rest, and is not made for such noise.
    tools = _bm3d_and_smoothing if pictured else _smoothing
    return Condition(f"{name}, JPEG 92", spoil, tools, gain, pictured=pictured)


def _low_light(name, camera, pictured=False):
    tools = plain_tools.BRIGHTENING
    spoil = _photos_of(camera, evaluation.as_file)
    return Condition(name, spoil, lambda *_: tools, rivals=(BEFORE, *tools), pictured=pictured)


def _half_size_and_back(clean, seed):
    pixels = Image.fromarray(as_pixels(clean))
    half = pixels.resize([max(1, side // 2) for side in pixels.size], Image.Resampling.BICUBIC)
    return np.asarray(half.resize(pixels.size, Image.Resampling.BICUBIC)) / 255, clean


def _training_camera(iso, exposure=1.0):
    """As the recipes have it: its colours, demosaicing and tone curve are drawn."""
    return degradations.Raw(kind="raw", iso=(iso, iso), exposure=(exposure, exposure))


def conditions(task):
    """{section: [Condition]} of a task, "denoise", "enhance" or "sharpen"."""
    trained, other = _training_camera, other_camera.OtherCamera
    if task == "denoise":
        return {
            "gaussian": [_white(sigma) for sigma in (10, 25, 50)],
            "camera": [
                _camera("ISO 3200", trained(3200), 4),
                _camera("ISO 12800", trained(12800), 6),
                _camera("another camera, ISO 3200", other(3200), 3),
                _camera("another camera, ISO 12800", other(12800), 3, pictured=True),
            ],
            "jpeg": [_white_jpeg(25, 85, 5), _white_jpeg(10, 85, None)],
        }
    if task == "enhance":
        return {
            "low_light": [
                _low_light("ISO 800, a quarter of the light", trained(800, 1 / 4)),
                _low_light("ISO 800, a tenth of the light", trained(800, 1 / 10)),
                _low_light("another camera, a tenth of the light", other(800, 1 / 10), pictured=True),
            ]
        }
    return {"blurred": [_HALF_SIZE]}


_HALF_SIZE = Condition(
    "half the size and back, bicubic",
    _half_size_and_back,
    lambda *_: plain_tools.SHARPENING,
    rivals=(BEFORE, *plain_tools.SHARPENING),
    pictured=True,
)
