"""Results side by side: a part of the photo as it is, and below a part of that, three times as large."""

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mirnet_fast import evaluation

ZOOM = 3
SIDE = 255  # pixels of a column; a multiple of ZOOM
LABEL, GAP = 20, 4
# {photo: (column, row) of the middle of what is shown}; of other photos their own middle
MIDDLES = {
    "astronaut": (226, 120),
    "bridge_at_night": (230, 220),
    "chelsea": (190, 120),
    "grace_hopper": (268, 215),
    "plant": (277, 130),
    "shop_sign": (425, 290),
    "squirrel": (290, 190),
    "street": (400, 250),
}


def as_pixels(rgb):
    """(H, W, 3) uint8, C-contiguous, of floats from 0 to 1, as a file of 8 bits holds them."""
    return np.ascontiguousarray(np.round(255 * evaluation.as_file(rgb)).astype(np.uint8))


def name_of(photo, condition):
    """The name of the file that `write` makes."""
    return re.sub(r"\W+", "-", f"{photo} {condition}".lower()) + ".webp"


def write(folder, condition, photo, results):
    """A WebP file, named after the photo and the condition.

    Args:
        folder: it is made if it is not there.
        condition, photo: names.
        results: {label: (H, W, 3) floats from 0 to 1}, all of one size; a column each.
    """
    height, width = next(iter(results.values())).shape[:2]
    column, row = MIDDLES.get(photo, (width // 2, height // 2))
    wide, high = (min(SIDE, size) for size in (width, height))
    left = min(max(column - wide // 2, 0), width - wide)
    top = min(max(row - high // 2, 0), height - high)
    size = len(results) * (SIDE + GAP) - GAP, LABEL + SIDE + GAP + SIDE
    picture = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    for i, (label, image) in enumerate(results.items()):
        x = i * (SIDE + GAP)
        part = Image.fromarray(as_pixels(image)[top : top + high, left : left + wide])
        draw.text((x + 2, 1), label, "black", font)
        picture.paste(part, (x, LABEL))
        picture.paste(_enlarged_middle(part), (x, LABEL + SIDE + GAP))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    picture.save(folder / name_of(photo, condition), quality=82, method=6)


def _enlarged_middle(part):
    small = SIDE // ZOOM
    left, top = ((size - small) // 2 for size in part.size)
    left, top = max(left, 0), max(top, 0)
    middle = part.crop((left, top, min(left + small, part.width), min(top + small, part.height)))
    return middle.resize((ZOOM * middle.width, ZOOM * middle.height), Image.Resampling.NEAREST)
