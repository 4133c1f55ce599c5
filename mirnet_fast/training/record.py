"""What a training leaves to look at: log.csv, pictures of its validation, TensorBoard's events of both."""

import csv
import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from .._files import remove_halves, replaced
from ..images import ImageError, Photo, write_photo
from .failures import TrainingError, can_be_written

LOG, SAMPLES, EVENTS = "log.csv", "samples", "events.out.tfevents.*"
COLUMNS = ("step", "loss", "learning_rate", "psnr", "ssim")
# Of a sample the middle is shown, at most so many pixels high and wide.
SIDE = 512
# A name of a file may have 255 bytes, and each of these characters four.
LONGEST = 50


class Record:
    """The record of the training in a folder.

    Raises, wherever it writes:
        TrainingError: that cannot be done.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._writer = None

    def forget_after(self, step: int) -> None:
        """Take the rows of later steps, which will be done again, out of the log; and halves of pictures.

        Raises:
            TrainingError: it is not the log of a training.
        """
        remove_halves(self.folder / SAMPLES)
        path = self.folder / LOG
        if not path.exists():
            return
        try:
            lines = path.read_bytes().decode().splitlines(keepends=True)
            # All of the first line, or as much of it as a process that was killed had written.
            if lines and not ",".join(COLUMNS).startswith(lines[0].strip()):
                raise ValueError("another first line")
            kept = [line for line in lines[1:] if line.endswith("\n") and int(line.split(",")[0]) <= step]
        except (OSError, ValueError) as error:
            raise TrainingError(f"{path} is not the log of a training ({error}); move it away") from error
        with can_be_written(path):
            if not kept or step == 0:  # even the row of step 0 will be written again
                path.unlink()
            elif kept != lines[1:]:
                with replaced(path) as new:
                    new.write_bytes("".join([lines[0], *kept]).encode())

    def add_row(
        self,
        step: int,
        loss: float | None = None,
        learning_rate: float | None = None,
        psnr: float | None = None,
        ssim: float | None = None,
    ) -> None:
        """What is known of a step."""
        path, row = self.folder / LOG, (loss, learning_rate, psnr, ssim)
        with can_be_written(path), path.open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(COLUMNS)
            writer.writerow((step, *row))
        with self._events_can_be_written():
            for name, value in zip(COLUMNS[1:], row, strict=True):
                if value is not None:
                    self._events(step).add_scalar(name, value, step)

    def add_sample(self, step: int, i: int, name: str, *pictures: np.ndarray) -> None:
        """Pictures of photo i, (H, W, 3) from 0 to 1, side by side in samples/STEP-I-NAME.png."""
        height, width = pictures[0].shape[:2]
        top, left = (max(0, side - SIDE) // 2 for side in (height, width))
        middle = slice(top, top + SIDE), slice(left, left + SIDE)
        shown = np.clip(np.nan_to_num(np.hstack([picture[middle] for picture in pictures])), 0, 1)
        # "skimage:cat" is a name, too; and what the system allows in one TensorBoard may not.
        name = Path(name.rpartition(":")[2]).stem[:LONGEST].encode(errors="replace").decode()
        path = self.folder / SAMPLES / f"{step:07}-{i}-{name}.png"
        with can_be_written(path.parent):
            path.parent.mkdir(exist_ok=True)
        try:
            write_photo(path, Photo(torch.from_numpy(shown).permute(2, 0, 1)[None]))
        except ImageError as error:
            raise TrainingError(str(error)) from error
        pixels = np.round(255 * shown).astype(np.uint8)
        with self._events_can_be_written():
            self._events(step).add_image(f"{SAMPLES}/{i}-{name}", pixels, step, dataformats="HWC")

    def flush(self) -> None:
        """All so far is with the system, and the log on the disk."""
        path = self.folder / LOG
        if path.exists():
            with can_be_written(path), path.open("rb") as file:
                os.fsync(file.fileno())
        if self._writer is not None:
            with self._events_can_be_written():
                self._writer.flush()

    def close(self) -> None:
        """The same, and no process or thread is at it any more; what is added later begins another file."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with self._events_can_be_written():
                writer.close()

    def _events(self, step):
        """The writer; the first event that it gets is of `step`."""
        if self._writer is None:
            # TensorBoard forgets what a run before wrote of this step and later ones. In a training that
            # begins, of all: its first step may be 0 or 1.
            self._writer = SummaryWriter(self.folder, purge_step=step if step > 1 else 0)
        return self._writer

    def _events_can_be_written(self):
        return can_be_written(self.folder / EVENTS)
