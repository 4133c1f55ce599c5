"""The data sets that restoration networks are trained on, as their authors publish them: lists of pairs."""

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ..images import ImageError, hidden, matching_photos, photos_below
from .fields import Part


class _Layout(Part):
    root: Path


def _folder(path):
    if not path.is_dir():
        raise ImageError(f"{path}: there is no such folder")
    return path


def _found(folder, pattern):
    return sorted(path for path in folder.glob(pattern) if not hidden(path.relative_to(folder)))


def _partners(inputs, partner):
    """[(input, target)]; `partner` gives a target's path from an input's."""
    pairs = [(path, partner(path)) for path in inputs]
    missing = [str(target) for _, target in pairs if not target.is_file()]
    if missing:
        listed = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ImageError(f"no partner of {pairs[0][0].name} or others: {listed} not there")
    return pairs


class Sidd(_Layout):
    """SIDD in sRGB (Abdelhamed et al., CVPR 2018): ROOT/Data/SCENE/*NOISY_SRGB_*.PNG and *GT_SRGB_*.PNG."""

    kind: Literal["sidd"]

    def pairs(self) -> list[tuple[Path, Path]]:
        noisy = _found(_folder(self.root / "Data"), "*/*NOISY_SRGB_*.PNG")
        if not noisy:
            raise ImageError(f"{self.root / 'Data'}: no SCENE/NOISY_SRGB_*.PNG in it")
        return _partners(noisy, lambda path: path.with_name(path.name.replace("NOISY_SRGB", "GT_SRGB")))


class RealSr(_Layout):
    """RealSR version 3 (Cai et al., ICCV 2019): ROOT/CAMERA/SPLIT/SCALE/*_LR{SCALE}.png and *_HR.png."""

    kind: Literal["realsr"]
    scale: Literal[2, 3, 4]
    split: Literal["Train", "Test"] = "Train"
    cameras: Annotated[tuple[str, ...], Field(min_length=1)] = ("Canon", "Nikon")

    def pairs(self) -> list[tuple[Path, Path]]:
        low = []
        for camera in self.cameras:
            folder = _folder(self.root / camera / self.split / str(self.scale))
            of_camera = _found(folder, f"*_LR{self.scale}.png")
            if not of_camera:
                raise ImageError(f"{folder}: no *_LR{self.scale}.png in it")
            low += of_camera
        return _partners(low, lambda path: path.with_name(re.sub(r"_LR\d\.png$", "_HR.png", path.name)))


class Lol(_Layout):
    """LoL (Wei et al., BMVC 2018): ROOT/our485/low and high, for evaluation ROOT/eval15."""

    kind: Literal["lol"]
    split: Literal["our485", "eval15"] = "our485"

    def pairs(self) -> list[tuple[Path, Path]]:
        folder = _folder(self.root / self.split)
        return matching_photos(folder / "low", folder / "high")


class FiveK(_Layout):
    """MIT-Adobe FiveK (Bychkovsky et al., CVPR 2011), exported: ROOT/input and ROOT/expert{A..E}."""

    kind: Literal["fivek"]
    expert: Literal["A", "B", "C", "D", "E"] = "C"

    def pairs(self) -> list[tuple[Path, Path]]:
        # The raw inputs and the retouched ones are often exported in different formats.
        inputs, found = (_by_stem(self.root / side) for side in ("input", f"expert{self.expert}"))
        alone = sorted(inputs.keys() ^ found.keys())
        if alone:
            listed = ", ".join(alone[:5]) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
            raise ImageError(
                f"{self.root}: input and expert{self.expert} must hold the same names; "
                f"only in one of them: {listed}"
            )
        return [(path, found[stem]) for stem, path in inputs.items()]


def _by_stem(folder):
    found = {}
    for path in photos_below(folder):
        other = found.setdefault(path.stem, path)
        if other != path:
            raise ImageError(f"{other} and {path}: which of the two is {path.stem}?")
    return found
