"""Patches and whole photos of a recipe's sources.

A sample is a function of the recipe's seed and of its number alone: which photo, where, turned how,
spoilt how. So a run can go on anywhere, with any number of workers and processes.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import torch
from torch.utils.data import Dataset, default_collate

from ..images import ImageError, photos_below, read_photo
from .degradations import generator, spoilt
from .recipe import Clean, Source

# Input, target and name of the photo.
Sample = tuple[torch.Tensor, torch.Tensor, str]

# Bytes of decoded photos that a worker keeps.
KEPT = 2**31


def _rgb(photo):
    """(H, W, 3) float32 of a file, or of a photo that an installed package carries."""
    if isinstance(photo, Path):
        return read_photo(photo).rgb[0].permute(1, 2, 0).numpy()
    package, _, name = photo.partition(":")
    if package not in _CARRIED:
        raise ImageError(f"photos: {photo!r} is none of skimage:NAME (of skimage.data) or sklearn:FILE")
    try:
        pixels = _CARRIED[package](name)
    except Exception as error:  # of the packages; they may also want to download the photo
        raise ImageError(f"photos: {photo!r} is not to be had: {' '.join(str(error).split())}") from error
    pixels = np.asarray(pixels[0] if isinstance(pixels, tuple) else pixels)  # of a stereo pair the left one
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))):
        raise ImageError(f"photos: {photo!r} is not a photo of 8 bits")
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, 2)
    return pixels[:, :, :3].astype(np.float32) / 255


def _of_skimage(name):
    if name not in skimage.data.__all__ or name == "download_all":
        raise ValueError("skimage.data has no such photo")
    return getattr(skimage.data, name)()


def _of_sklearn(name):
    from sklearn.datasets import load_sample_image

    return load_sample_image(name)


_CARRIED = {"skimage": _of_skimage, "sklearn": _of_sklearn}


class Photos:
    """The whole photos of a source: len(), and pair(i, rng) -> (input, target, name)."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.paired = not isinstance(source, Clean)
        if isinstance(source, Clean):
            # pyrefly: ignore[bad-argument-type]
            photos = source.photos or photos_below(source.folder)
            sizes = [(scale, None) for scale in source.scales] + [(1.0, side) for side in source.sides]
            self.names = [(photo, *size) for size in sizes for photo in photos]
        else:
            self.names = source.pairs()
        self._kept, self._bytes = {}, 0

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        """What a message calls photo i: the file of its input."""
        return str(self.names[i][0])

    def target(self, i: int) -> np.ndarray:
        """(H, W, 3) float32 of the clean photo i."""
        return self._decoded(self.names[i][1]) if self.paired else self._decoded(*self.names[i])

    def _decoded(self, photo, scale=1.0, side=None):
        key = photo, scale, side
        if key in self._kept:
            return self._kept[key]
        rgb = _rgb(photo)
        if side is not None:
            scale = min(side / min(rgb.shape[:2]), 1)
        if scale < 1:
            if scale * min(rgb.shape[:2]) < 1:
                raise ImageError(f"{photo} at scale {scale} is less than a pixel")
            rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        if self._bytes + rgb.nbytes <= KEPT:
            self._kept[key] = rgb
            self._bytes += rgb.nbytes
        return rgb

    def check(self, i: int, side: int, what: str) -> None:
        """Raise ImageError if photo i is damaged, smaller than what has that side, or than its partner."""
        height, width = self.target(i).shape[:2]
        if min(height, width) < side:
            raise ImageError(f"{self.name(i)} is {width} x {height} pixels, smaller than {what} of {side}")
        if self.paired:
            self._given(i)

    def _given(self, i):
        given, target = self._decoded(self.names[i][0]), self.target(i)
        if given.shape != target.shape:
            raise ImageError(
                f"{self.names[i][0]} is {given.shape[1]} x {given.shape[0]} pixels and "
                f"{self.names[i][1]} {target.shape[1]} x {target.shape[0]}: a pair must have one size"
            )
        return given

    def pair(
        self, i: int, rng: np.random.Generator, window: tuple[slice, slice] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(input, target) (H, W, 3) float32 of photo i, or of a window of it, a pair of slices."""
        target = self.target(i)
        window = window or (slice(None), slice(None))
        if not isinstance(self.source, Clean):
            return self._given(i)[window], target[window]
        clean, steps = target[window], self.source.degradations
        if self.source.target == "processed":
            key = int(rng.integers(2**63))
            given, clean = (spoilt(clean, steps, generator(key, 0), noise) for noise in (True, False))
            return given, clean
        given = clean
        for step in steps:  # with one generator, as in the runs whose logs there are
            given = step.apply(given, rng)
        return given, clean


class Patches(Dataset[Sample]):
    """Sample number k -> (input, target) (3, patch, patch) and the name of the photo."""

    def __init__(self, source: Source, patch: int, seed: int) -> None:
        self.photos, self.patch, self.seed = Photos(source), patch, seed
        self.margin = source.margin if isinstance(source, Clean) else 0

    def __getitem__(self, number: int) -> Sample:  # pyrefly: ignore[bad-override-param-name]
        epoch, place = divmod(number, len(self.photos))
        # Every photo once an epoch, each epoch in an order of its own.
        i = int(generator(self.seed, 2**63 + epoch).permutation(len(self.photos))[place])
        rng = generator(self.seed, number)
        side = self.patch + 2 * self.margin
        margins = f" of {self.patch} with margins of {self.margin}, together a square" if self.margin else ""
        self.photos.check(i, side, f"a patch{margins}")
        window = _window(self.photos.target(i).shape[:2], side, rng)
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        patch = _window((side, side), self.patch, rng)
        pair = [image[patch] for image in self.photos.pair(i, rng, window)]
        given, target = (_tensor(_turned(image, turns, mirrored)) for image in pair)
        return given, target, self.photos.name(i)

    def __getitems__(self, numbers: Sequence[int]) -> list[Sample] | Exception:
        """What a DataLoader asks for: the samples, or the error that one of them raised.

        Raised in a worker it would come with the worker's whole traceback as its message.
        """
        try:
            return [self[number] for number in numbers]
        except (ImageError, OSError) as error:
            return error


def collated(samples: list[Sample] | Exception) -> Any:
    """The batch of samples of Patches; their error as it is."""
    return samples if isinstance(samples, Exception) else default_collate(samples)


def _window(size: tuple[int, int], side: int, rng: np.random.Generator) -> tuple[slice, slice]:
    """A square of that side at a random place in what has that size, a pair of slices."""
    top, left = (int(rng.integers(length - side + 1)) for length in size)
    return slice(top, top + side), slice(left, left + side)


def _turned(image, turns, mirrored):
    image = np.rot90(image, turns)
    return image[:, ::-1] if mirrored else image


def _tensor(image):
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))


class Order(torch.utils.data.Sampler[list[int]]):
    """The sample numbers of one process from update `start` on: its part of every update's batch."""

    def __init__(self, start: int, steps: int, batch: int, rank: int = 0, world: int = 1) -> None:
        self.start, self.steps, self.batch, self.rank, self.world = start, steps, batch, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        share = self.batch // self.world
        for step in range(self.start, self.steps):
            first = step * self.batch + self.rank * share
            yield list(range(first, first + share))

    def __len__(self) -> int:
        return self.steps - self.start
