"""What happens to a photo on its way: noise, compression, darkness, lost resolution, a camera.

Each takes an RGB array (H, W, 3), float32 from 0 to 1, and a numpy Generator, and returns the same
kind of array, in the range 0 to 1 where a file would hold it so. With noise=False it does the same
with the same random numbers, but adds no noise and takes away no light.
"""

import functools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

import cv2
import numpy as np
import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import nn

from .fields import MANY, Few, NotNegative, Part, Positive, Qualities, Range, Rising, Share, Whole

# Steps within each other, and all of a list together; aliases in YAML could make millions of a few lines.
DEEPEST = 8
MOST = 1000

# Pixels, and units of 1/255.
Width = Annotated[Positive, Field(ge=0.1, le=100)]
Sigma = Annotated[NotNegative, Field(le=255)]


class Harm(Part):
    """What only adds noise or takes away light, and so does nothing without noise."""

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        return self._spoilt(rgb, rng) if noise else rgb

    def _spoilt(self, rgb, rng):
        raise NotImplementedError


class Gaussian(Harm):
    """White Gaussian noise; sigma, drawn from a range, in units of 1/255.

    Not clipped, as in benchmarks, but for the chance `clip`: then as in files.
    """

    kind: Literal["gaussian"]
    sigma: Range
    clip: Share = 0.0

    def _spoilt(self, rgb, rng):
        sigma = rng.uniform(*self.sigma) / 255
        noisy = rgb + sigma * rng.standard_normal(rgb.shape, np.float32)
        return np.clip(noisy, 0, 1) if rng.random() < self.clip else noisy


class Camera(Harm):
    """Poisson-Gaussian noise of a sensor: variance shot * signal + read**2, clipped.

    Source: Foi et al., "Practical Poissonian-Gaussian noise modeling", IEEE TIP 2008, equation 2.
    """

    kind: Literal["camera"]
    shot: Range
    read: Range

    def _spoilt(self, rgb, rng):
        shot, read = rng.uniform(*self.shot), rng.uniform(*self.read)
        return np.clip(_as_a_sensor(rgb, shot, read, rng), 0, 1).astype(np.float32)


def _as_a_sensor(signal, shot, read, rng):
    deviation = np.sqrt(shot * np.clip(signal, 0, 1) + read**2)
    return signal + deviation * rng.standard_normal(signal.shape, np.float32)


class Correlated(Harm):
    """Noise that neighbours share: white Gaussian noise, blurred by a Gaussian of `blur` pixels, clipped.

    sigma, in units of 1/255, is the deviation after the blur. Channels: "rgb", independently; "chroma",
    Cb and Cr of BT.601 independently, which leaves luma as it is (the coarse blotches of phones); "luma",
    red, green and blue alike.
    """

    kind: Literal["correlated"]
    sigma: Rising[Sigma]
    blur: Rising[Width]
    channels: Literal["rgb", "chroma", "luma"] = "rgb"

    def _spoilt(self, rgb, rng):
        sigma, blur = rng.uniform(*self.sigma) / 255, rng.uniform(*self.blur)
        planes = _PLANES[self.channels]
        # Drawn larger by what the blur reaches, so that there is no more of it at the edges than elsewhere.
        reach = math.ceil(3 * blur)
        height, width = rgb.shape[:2]
        white = rng.standard_normal((height + 2 * reach, width + 2 * reach, planes.shape[1]), np.float32)
        taps = cv2.getGaussianKernel(2 * reach + 1, blur)
        blurred = cv2.sepFilter2D(white, -1, taps, taps)[reach : reach + height, reach : reach + width]
        return np.clip(rgb + cv2.transform(blurred, sigma / np.sum(taps**2) * planes), 0, 1)


# Columns: what a unit of each independent plane adds to red, green and blue.
_PLANES = {
    "rgb": np.eye(3),
    "chroma": np.array([[0, 1.402], [-0.344136, -0.714136], [1.772, 0]]),
    "luma": np.ones((3, 1)),
}


class Jpeg(Part):
    """JPEG of a quality drawn from a range of 1 to 100, and of one of the subsamplings of colour."""

    kind: Literal["jpeg"]
    quality: Qualities
    subsampling: list[Literal["4:2:0", "4:4:4"]] = Field(["4:2:0"], min_length=1)

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        quality = int(rng.integers(self.quality[0], self.quality[1] + 1))
        subsampling = _SUBSAMPLINGS[_one(self.subsampling, rng)]
        pixels = np.round(255 * np.clip(rgb, 0, 1)).astype(np.uint8)[:, :, ::-1]
        settings = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, subsampling]
        _, data = cv2.imencode(".jpg", pixels, settings)
        decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)[:, :, ::-1]  # pyrefly: ignore[unsupported-operation]
        return decoded.astype(np.float32) / 255


_SUBSAMPLINGS = {
    "4:2:0": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "4:4:4": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
}


class LowLight(Harm):
    """A dark exposure: gain * rgb ** gamma."""

    kind: Literal["low_light"]
    gamma: Range
    gain: Range

    def _spoilt(self, rgb, rng):
        gamma, gain = rng.uniform(*self.gamma), rng.uniform(*self.gain)
        return (gain * np.clip(rgb, 0, 1) ** gamma).astype(np.float32)


class Fade(Part):
    """A scene without white: rgb * white; in the target, too. So the brightest does not tell the light."""

    kind: Literal["fade"]
    white: Rising[Annotated[Share, Field(gt=0)]]

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        return rgb * np.float32(rng.uniform(*self.white))


class Resample(Part):
    """Down-sampling by a factor and back up, as inputs of same-size super-resolution.

    Of the filters one is drawn: "area" is down by areas and up by OpenCV's bicubic; "bicubic" is both ways
    what Pillow and MATLAB call so, wider on the way down.
    """

    kind: Literal["resample"]
    factor: int = Field(ge=2, le=MANY)
    filter: list[Literal["area", "bicubic"]] = Field(["area"], min_length=1)

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        if _one(self.filter, rng) == "area":
            return _down_and_up(rgb, self.factor, cv2.INTER_AREA, cv2.INTER_CUBIC)
        whole = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None]))
        size = whole.shape[2:]
        for sides in ([max(1, side // self.factor) for side in size], size):
            whole = nn.functional.interpolate(whole, sides, mode="bicubic", antialias=True).clamp(0, 1)
        return np.ascontiguousarray(whole[0].permute(1, 2, 0).numpy())


class Zoom(Part):
    """Down by a factor drawn from a range of 1 and more, and back up, both in one of the usual ways.

    As where a photo was made smaller, or magnified (digital zoom).
    """

    kind: Literal["zoom"]
    factor: Rising[Annotated[Positive, Field(ge=1, le=MANY)]]

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        return _down_and_up(rgb, rng.uniform(*self.factor), _one(_DOWN, rng), _one(_UP, rng))


_DOWN = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
_UP = (cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)


def _down_and_up(rgb, factor, down, up):
    height, width = rgb.shape[:2]
    size = max(1, int(width / factor)), max(1, int(height / factor))
    small = cv2.resize(rgb, size, interpolation=down)
    return np.clip(cv2.resize(small, (width, height), interpolation=up), 0, 1)


class Sharpen(Part):
    """Unsharp mask: rgb + amount * (rgb - rgb blurred by a Gaussian of `radius` pixels), clipped."""

    kind: Literal["sharpen"]
    amount: Rising[Annotated[NotNegative, Field(le=100)]]
    radius: Rising[Width]

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        amount, radius = rng.uniform(*self.amount), rng.uniform(*self.radius)
        blurred = cv2.GaussianBlur(rgb, (0, 0), radius)
        return np.clip(rgb + amount * (rgb - blurred), 0, 1)


class Raw(Part):
    """A photo as a camera would have taken it: back to light on the sensor, its noise, and developed again.

    Back (Brooks et al., "Unprocessing Images for Learned Raw Denoising", CVPR 2019, arXiv 1811.11127,
    section 3): tone curve, gamma of sRGB, the matrix of a camera, white balance with highlights that stay
    white, a Bayer mosaic of any phase (which takes two pixels each way). On the mosaic: noise of variance
    shot * signal + read**2, values below black and above white cut off, steps of `bits`. Forward: white
    balance, demosaicing, matrix, gamma and tone curve, 8 bits. Without noise that is the photo but for what
    mosaic and demosaicing cost.

    Attributes:
        iso: drawn log-uniformly. shot is ISO * SHOT, the amplification of a sensor whose pixels hold
            1 / (100 * SHOT) electrons at ISO 100. The read noise follows it as in the paper's fit to
            phones and cameras: ln(read**2) = 2.18 * ln(shot) + 1.2, deviating by 0.26.
        exposure: the sensor gets that share of the light, and nothing makes up for it: as noisy as the
            ISO says, and dark. It is 1 without noise.
        demosaic: one is drawn: "bilinear" or "edge_aware" of OpenCV, or "hamilton_adams".
        bits: of the raw values, drawn.
        tone: the chance that the camera has a tone curve, smoothstep; else gamma alone.
    """

    kind: Literal["raw"]
    iso: Rising[Annotated[Positive, Field(ge=1e-12, le=MANY)]]
    exposure: Rising[Annotated[Share, Field(gt=0)]] = (1.0, 1.0)
    demosaic: list[Literal["bilinear", "edge_aware", "hamilton_adams"]] = Field(
        ["bilinear", "edge_aware", "hamilton_adams"], min_length=1
    )
    bits: Rising[Annotated[Whole, Field(ge=8, le=16)]] = (10, 14)
    tone: Share = 0.5

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        shot = SHOT * math.exp(rng.uniform(*np.log(self.iso)))
        read = math.exp((2.18 * math.log(shot) + 1.2 + 0.26 * rng.standard_normal()) / 2)
        exposure = rng.uniform(*self.exposure)
        demosaic, pattern = _one(self.demosaic, rng), np.roll(_RGGB, rng.integers(2, size=2), (0, 1))
        steps = 2 ** int(rng.integers(self.bits[0], self.bits[1] + 1)) - 1
        matrix, gains, tone = _camera_matrix(rng), _gains(rng), rng.random() < self.tone

        gains = _tiled(gains[pattern], rgb.shape[:2])
        sensor = _unprocessed(rgb, matrix, gains, pattern, tone)
        if noise:
            sensor = _as_a_sensor(exposure * sensor, shot, read, rng)
        sensor = np.round(steps * np.clip(sensor, 0, 1)) / steps
        developed = _developed(np.minimum(gains * sensor, 1), matrix, pattern, tone, demosaic)
        return np.round(255 * developed) / 255


# That of a small sensor. Photos (skimage's astronaut and coffee) end at 27 to 30 dB with ISO 3200 and at
# 22 to 24 dB with 12800, against themselves without noise, JPEG 92 after both.
SHOT = 7e-7

# CIE XYZ to camera RGB at D65, by Adobe: Nexus 6P, Sony A7R, Olympus E-M10, Sony RX100, as in the paper.
_XYZ_TO_CAMERA = np.array(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)
# IEC 61966-2-1.
_RGB_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def _camera_matrix(rng):
    """Linear sRGB to camera RGB, (3, 3): a random mean of four cameras; white stays white."""
    weights = rng.random(len(_XYZ_TO_CAMERA))
    matrix = np.tensordot(weights, _XYZ_TO_CAMERA, 1) @ _RGB_TO_XYZ
    return matrix / matrix.sum(1, keepdims=True)


def _gains(rng):
    """White balance of red, green and blue, in the ranges of Brooks et al."""
    return np.array([rng.uniform(1.9, 2.4), 1, rng.uniform(1.5, 1.9)], np.float32)


@functools.cache
def _curves(tone):
    """Tables of 2**16 values: from what a file holds to light, and back."""
    x = np.linspace(0, 1, 2**16)
    coded = 0.5 - np.sin(np.arcsin(1 - 2 * x) / 3) if tone else x
    light = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    back = np.where(x <= 0.0031308, 12.92 * x, 1.055 * x ** (1 / 2.4) - 0.055)
    return light.astype(np.float32), (back * back * (3 - 2 * back) if tone else back).astype(np.float32)


def _looked_up(table, values):
    return table[np.round(65535 * np.clip(values, 0, 1)).astype(np.uint16)]


def _unprocessed(rgb, matrix, gains, pattern, tone):
    """What a sensor of that pattern gets, (H, W), of a file's (H, W, 3)."""
    colours = cv2.transform(_looked_up(_curves(tone)[0], rgb), matrix)
    # Where all is nearly white the gains are not undone: the sensor was full (section 3 of the paper).
    grey = cv2.transform(colours, np.full((1, 3), 1 / 3))
    bright = (np.clip(grey - 0.9, 0, 0.1) / 0.1) ** 2
    mosaic = np.empty(rgb.shape[:2], np.float32)
    for y, x in np.ndindex(2, 2):
        mosaic[y::2, x::2] = colours[y::2, x::2, pattern[y, x]]
    return mosaic * np.maximum(bright + (1 - bright) / gains, 1 / gains)


def _developed(mosaic, matrix, pattern, tone, demosaic):
    """What a file holds, (H, W, 3), of a mosaic (H, W) after white balance."""
    colours = _DEMOSAICINGS[demosaic](mosaic, pattern)
    return _looked_up(_curves(tone)[1], cv2.transform(colours, np.linalg.inv(matrix)))


# Colours of a sensor's pixels, which repeat: red, green and blue are 0 to 2.
_RGGB = np.array([[0, 1], [1, 2]])


def _tiled(pattern, size):
    return np.tile(pattern, [(n + 1) // 2 for n in size])[: size[0], : size[1]]


def _by_opencv(mosaic, pattern, suffix=""):
    # Its outermost pixels are copies, so the mosaic is mirrored to be larger; 2 keeps the phase.
    wide = cv2.copyMakeBorder(mosaic, 2, 2, 2, 2, cv2.BORDER_REFLECT_101)
    code = getattr(cv2, f"COLOR_Bayer{''.join('RGB'[colour] for colour in pattern.flat)}2RGB{suffix}")
    return cv2.cvtColor(np.round(65535 * wide).astype(np.uint16), code)[2:-2, 2:-2] / np.float32(65535)


def _hamilton_adams(mosaic, pattern):
    """Green along the smoother direction, then smooth differences to it (US patent 5,629,734, of 1997)."""

    def along(*taps):
        row = np.array([taps], np.float32)
        return cv2.filter2D(mosaic, -1, row), cv2.filter2D(mosaic, -1, row.T)

    roughness = [
        np.abs(slope) + np.abs(bend)
        for slope, bend in zip(along(-1, 0, 1), along(-1, 0, 2, 0, -1), strict=True)
    ]
    colours = _tiled(pattern, mosaic.shape)
    across, down = along(-0.25, 0.5, 0.5, 0.5, -0.25)
    share = (1 + np.sign(roughness[1] - roughness[0])) / 2
    green = np.where(colours == 1, mosaic, down + share * (across - down))
    taps = np.array([0.5, 1, 0.5], np.float32)
    red, blue = (
        green + cv2.sepFilter2D(np.where(colours == colour, mosaic - green, 0), -1, taps, taps)
        for colour in (0, 2)
    )
    return np.clip(cv2.merge([red, green, blue]), 0, 1)


_DEMOSAICINGS = {
    "bilinear": _by_opencv,
    "edge_aware": functools.partial(_by_opencv, suffix="_EA"),
    "hamilton_adams": _hamilton_adams,
}


class AnyOrder(Part):
    """All steps, in an order that is drawn."""

    kind: Literal["any_order"]
    steps: list["Degradation"] = Field(min_length=1)

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        order = rng.permutation(len(self.steps))
        return spoilt(rgb, [self.steps[i] for i in order], rng, noise)


class OneOf(Part):
    """One of the steps; `weights`, whole numbers, say how often each, else all alike."""

    kind: Literal["one_of"]
    steps: list["Degradation"] = Field(min_length=1)
    weights: list[Few] | None = None

    @model_validator(mode="after")
    def a_weight_each(self) -> "OneOf":
        if self.weights and len(self.weights) != len(self.steps):
            counts = f"{len(self.weights)} and {len(self.steps)}"
            raise ValueError(f"must have as many weights as steps; got {counts}")
        return self

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        weights = np.array(self.weights or [1] * len(self.steps))
        chosen = rng.choice(len(self.steps), p=weights / weights.sum())
        return spoilt(rgb, [self.steps[chosen]], rng, noise)


class Chance(Part):
    """All steps one after another at a chance of `share`, else none; with 1 a list where a step is due."""

    kind: Literal["chance"]
    share: Share
    steps: list["Degradation"] = Field(min_length=1)

    def apply(self, rgb: np.ndarray, rng: np.random.Generator, noise: bool = True) -> np.ndarray:
        return spoilt(rgb, self.steps, rng, noise) if rng.random() < self.share else rgb


Degradation = Annotated[
    Gaussian
    | Camera
    | Correlated
    | Jpeg
    | LowLight
    | Fade
    | Resample
    | Zoom
    | Sharpen
    | Raw
    | AnyOrder
    | OneOf
    | Chance,
    Field(discriminator="kind"),
]


def _bounded(steps):
    """The steps of a recipe as they are; looked at before anything else goes down into them."""
    unseen, count = [(steps, 1)], 0
    while unseen:
        given, depth = unseen.pop()
        given = given if isinstance(given, (list, tuple)) else ()
        count += len(given)
        if depth > DEEPEST or count > MOST:
            raise ValueError(f"must be at most {MOST} steps, and {DEEPEST} within each other")
        for step in given:
            within = step.get("steps") if isinstance(step, dict) else getattr(step, "steps", None)
            unseen.append((within, depth + 1))
    return steps


Degradations = Annotated[list[Degradation], Field(min_length=1), BeforeValidator(_bounded)]


def generator(seed: int, number: int) -> np.random.Generator:
    """The random numbers of sample `number`."""
    return np.random.Generator(np.random.Philox(key=[seed, number]))


def spoilt(
    rgb: np.ndarray, steps: "Sequence[Degradation]", rng: np.random.Generator, noise: bool = True
) -> np.ndarray:
    """rgb after all steps, each with random numbers of its own: none depends on how many another drew."""
    key = int(rng.integers(2**63))
    for number, step in enumerate(steps):
        rgb = step.apply(rgb, generator(key, number), noise)
    return rgb


def _one(choices, rng):
    return choices[int(rng.integers(len(choices)))]
