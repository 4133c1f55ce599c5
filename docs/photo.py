"""Draws before_after.jpg: a noisy photo and the restored one, of what `mirnet-fast demo` writes.

mirnet-fast demo --out FOLDER && python docs/photo.py FOLDER

The photo is scikit-image's astronaut, by NASA, in the public domain.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE = Path(__file__).with_name("before_after.jpg")
ROWS, COLUMNS = slice(0, 288), slice(64, 448)  # of 512: most of the face, and what is behind it


def side_by_side(noisy, restored):
    """(H, W, 3) uint8 of both photos, the same part of each; a white line between them."""
    line = np.full((ROWS.stop - ROWS.start, 4, 3), 255, np.uint8)
    return np.concatenate([noisy[ROWS, COLUMNS], line, restored[ROWS, COLUMNS]], 1)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    photos = [np.asarray(Image.open(folder / name)) for name in ("noisy.png", "mirnet_fast.png")]
    Image.fromarray(side_by_side(*photos)).save(PICTURE, quality=92, subsampling=0, optimize=True)
    print(f"{PICTURE} is drawn")
