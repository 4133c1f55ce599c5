"""The files of denoising benchmarks that are judged elsewhere: validation blocks in, submissions out.

SIDD: one array of 40 images x 32 blocks of 256 x 256. DND: an image a file, and the boxes of 20 blocks of
each in info.mat. Both as their authors' kits read and write them. DND's files are HDF5: needs h5py.
"""

import contextlib
from pathlib import Path

import numpy as np
import scipy.io
import torch
from torch import nn

from .._files import replaced
from ..images import ImageError
from ..inference import restore

# The arrays of SIDD's files.
VALIDATION_NOISY, VALIDATION_CLEAN = "ValidationNoisyBlocksSrgb", "ValidationGtBlocksSrgb"
BENCHMARK_NOISY = "BenchmarkNoisyBlocksSrgb"


def sidd_blocks(path: str | Path, name: str) -> np.ndarray:
    """(images, blocks, H, W, 3) uint8 of a .mat file, by the name of the array in it.

    Raises:
        ImageError: the file cannot be read, or holds no such array.
    """
    try:
        content = scipy.io.loadmat(path, appendmat=False)
    except Exception as error:  # a damaged file may raise anything
        raise ImageError(f"{path} cannot be read as Matlab's: {error}") from error
    if name not in content:
        names = sorted(key for key in content if not key.startswith("__"))
        raise ImageError(f"{path} holds no {name}; it holds {', '.join(names) or 'nothing'}")
    blocks = content[name]
    if blocks.ndim != 5 or blocks.shape[4] != 3 or 0 in blocks.shape or blocks.dtype != np.uint8:
        raise ImageError(
            f"{path}: {name} must be (images, blocks, H, W, 3) uint8; got {blocks.shape} {blocks.dtype}"
        )
    return blocks


def restored(model: nn.Module, rgb: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """A (H, W, 3) float32 image from 0 to 1 through the model, clipped to that range.

    Raises:
        ImageError: the model gives values that are not finite.
    """
    x = torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)[None], np.float32)).to(device)
    result = restore(model, x)[0]
    if not result.isfinite().all():
        raise ImageError("a restored block has values that are not finite")
    return result.clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def restored_blocks(model: nn.Module, blocks: np.ndarray, device: torch.device | str = "cpu") -> np.ndarray:
    """The same array of blocks after the model, uint8; raises as `restored` does."""
    result = np.empty_like(blocks)
    for i in np.ndindex(*blocks.shape[:2]):
        result[i] = np.round(255 * restored(model, blocks[i].astype(np.float32) / 255, device))
    return result


def write_sidd_submission(
    path: str | Path, blocks: np.ndarray, seconds_per_megapixel: float, method: str = "MIRNet"
) -> None:
    """SubmitSrgb.mat as the SIDD benchmark takes it, from restored benchmark blocks, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    cells = np.empty(blocks.shape[:2], dtype=object)
    for i in np.ndindex(*cells.shape):
        cells[i] = blocks[i]
    optional = {"MethodName": method, "Authors": "", "PaperTitle": "", "Venue": ""}
    content = {
        "DenoisedBlocksSrgb": cells,
        "TimeMPSrgb": float(seconds_per_megapixel),
        "OptionalData": optional,
    }
    _save(path, content)


def _save(path, content):
    with replaced(path) as new:
        scipy.io.savemat(new, content, do_compression=True, appendmat=False)


def dnd_boxes(root: str | Path) -> list[list[tuple[int, int, int, int]]]:
    """[(first row, end row, first column, end column) of each block] for each image, from info.mat.

    Raises:
        ImageError: the file is not there or is not the benchmark's.
    """
    path = Path(root) / "info.mat"
    with _hdf5(path) as file:
        info = file["info"]
        boxes = [np.array(file[info["boundingboxes"][0, i]]).T for i in range(info["boundingboxes"].shape[1])]
        # Matlab counts from 1 and includes the ends.
        return [[(int(b[0]) - 1, int(b[2]), int(b[1]) - 1, int(b[3])) for b in image] for image in boxes]


def dnd_image(root: str | Path, i: int) -> np.ndarray:
    """(H, W, 3) float32 of image i, from 0, of ROOT/images_srgb.

    Raises:
        ImageError: the file is not there or is not the benchmark's.
    """
    path = Path(root) / "images_srgb" / f"{i + 1:04d}.mat"
    with _hdf5(path) as file:
        image = np.array(file["InoisySRGB"], np.float32).transpose(2, 1, 0)
    if image.shape[2] != 3:
        raise ImageError(f"{path}: InoisySRGB must be (H, W, 3); got {image.shape}")
    return image


def write_dnd_submission(
    model: nn.Module,
    root: str | Path,
    out: str | Path,
    device: torch.device | str = "cpu",
) -> None:
    """Restore every block of DND below ROOT; OUT gets a bundle an image, as the benchmark takes them.

    Raises:
        ImageError: a file of the benchmark is not there or is not as it should be, or the model gives
            values that are not finite.
        OSError: OUT cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for i, boxes in enumerate(dnd_boxes(root)):
        image = dnd_image(root, i)
        cells = np.empty(len(boxes), dtype=object)
        for k, (top, bottom, left, right) in enumerate(boxes):
            if not (0 <= top < bottom <= image.shape[0] and 0 <= left < right <= image.shape[1]):
                raise ImageError(
                    f"{root}: block {k + 1} of image {i + 1} is rows {top + 1} to {bottom} and columns "
                    f"{left + 1} to {right} of {image.shape[0]} x {image.shape[1]}"
                )
            cells[k] = restored(model, image[top:bottom, left:right], device)
        content = {"Idenoised": cells, "israw": False, "eval_version": "1.0"}
        _save(out / f"{i + 1:04d}.mat", content)


@contextlib.contextmanager
def _hdf5(path):
    try:
        import h5py
    except ImportError as error:
        raise ImageError(f"DND's files need h5py ({error}); try: pip install 'mirnet-fast[train]'") from error
    try:
        with h5py.File(path) as file:
            yield file
    except Exception as error:  # a damaged file may raise anything
        raise ImageError(f"{path} cannot be read as DND's: {error}") from error
