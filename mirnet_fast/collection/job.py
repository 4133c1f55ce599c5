"""One file restored: read, run, written, each where a pipeline wants it, or all at once."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from ..backends import BackendError
from ..images import ImageError, Limits, Page, Pages, Photo, PhotoWriter, check_format
from ..images.limits import USUAL
from ..inference import Forecast
from ..restorer import Restorer
from . import places
from .listing import Item
from .notes import noted
from .records import FAILED, RESTORED, SKIPPED, Record

BY_ROWS = 2**24  # pixels from which on a page is never in memory as floats

# Called with a file, what part of it is done, and, when it begins, what it will take or None.
Watch = Callable[[Item, float, Forecast | None], object]


@dataclass(frozen=True)
class How:
    """What goes for all files.

    Attributes:
        overwrite: whether results that are there already are made anew.
        salvage: whether damaged files are restored as far as they go.
        limits: what is too large.
    """

    overwrite: bool = False
    salvage: bool = False
    limits: Limits = USUAL


class Job:
    """A file on its way: `read`, `run` and `write`, one after the other, in any threads.

    What goes wrong is told by `record`, and what comes after does nothing.

    Args:
        whole: up to how many pixels a file of one page goes as floats from stage to stage, so that turning
            it from and into integers is not left to the thread of the network.

    Attributes:
        record: what became of it so far; final where `done` is true.
        done: nothing is left to do.
        no_space: it failed as there is no space left for its result, which others will not have either.
    """

    def __init__(self, item: Item, how: How, whole: int = 0) -> None:
        self.item, self.how, self.whole, self.done, self.no_space = item, how, whole, False, False
        self.record = Record(item.input, item.output, FAILED)
        self._notes: list[str] = []
        self._begun = False  # to write
        self._copies: dict[Path, str] = {}  # of files that are elsewhere: their URLs
        self._pages: Pages | None = None
        self._first: Page | None = None
        self._photo: Photo | None = None
        self._writer: PhotoWriter | None = None
        self._put: Callable[[], object] | None = None

    @property
    def waiting_bytes(self) -> int:
        """Of pixels that wait for the network."""
        photo, first = self._photo, self._first
        return (first.pixels.nbytes if first else 0) + (photo.rgb.nbytes if photo else 0)

    def read(self) -> "Job":
        """Open and decode the file, and see whether its result can be written."""
        with self._stage():
            if self._is_there():
                self._finish(SKIPPED, reason=_there_already(self.item))
                return self
            pages = self._pages = Pages(self._fetched(), self.how.salvage, self.how.limits)
            first = self._first = pages[0]
            pixels = first.width * first.height * len(pages)
            self.record = replace(
                self.record, width=first.width, height=first.height, pages=len(pages), pixels=pixels
            )
            check_format(self.item.output, first, len(pages))
            if len(pages) > 1 and len({(page.pixels.shape, page.dtype) for page in pages}) > 1:
                what = "its pages differ in size or kind, which cannot be written in one file"
                raise ImageError(f"{self.item.input}: {what}")
            if len(pages) == 1 and pixels <= self.whole:
                self._photo = first.photo()
        return self

    def run(self, restorer: Restorer, watch: Watch | None = None) -> "Job":
        """Have the network restore what was read; `watch` as of `restore_files`."""
        with self._stage():
            pages, first, given = self._pages, self._first, self._photo
            self._first = self._photo = None
            if pages is None or first is None:
                return self
            target = self._target()
            self._begun = True
            self._writer = writer = PhotoWriter(target, first, len(pages))
            noise, strengths = [], []
            for number in range(len(pages)):
                page = pages[number] if number else first
                if page.damage:
                    where = f"page {number + 1} is " if len(pages) > 1 else ""
                    self._notes.append(f"{where}damaged ({page.damage}); restored as far as it goes")
                told = self._run_page(restorer, writer, page, given, number, watch)
                strengths.append(told[1].item())
                if told[0] is not None:
                    noise.append(255 * told[0].item())
            pages.close()
            self.record = replace(self.record, strength=_mean(strengths), noise=_mean(noise))
        return self

    def _run_page(self, restorer, writer, page, given, number, watch):
        """(noise or None, strength) of a page, whose pixels go to the writer now or are put later."""

        def progress(done, total):
            if watch is not None:
                watch(self.item, (number + done / total) / writer.pages, None)

        if (
            page.height * page.width >= BY_ROWS
            and restorer.device.type == "cpu"
            and not restorer.self_ensemble
            and restorer.tile is None
        ):

            def put(top, rows):
                writer.put(top, rows, page.alpha(top, top + rows.shape[2]), number)

            def forecast(forecast):
                if watch is not None:
                    watch(self.item, number / writer.pages, forecast)

            size = page.height, page.width
            return restorer.restored_by_rows(size, page.rows, put, progress, forecast)
        photo = given or page.photo()
        restored = restorer.restored(photo.rgb, progress)
        difference = restorer.tile_difference(photo.rgb) if number == 0 else None
        if difference is not None:
            largest, mean = (restored.strength.item() * each for each in difference)
            self.record = replace(self.record, largest_difference=largest, mean_difference=mean)
        self._put = partial(writer.put, 0, restored.image, photo.alpha, number)
        if given is None:
            self._put_now()
        return restored.noise, restored.strength

    def write(self) -> "Job":
        """Write the result, whole or not at all."""
        with self._stage():
            self._put_now()
            if self._writer is not None:
                with self._writer:
                    pass
                if places.is_url(self.item.output):
                    places.put(self._writer.path, self.item.output)
                self._finish(RESTORED)
        return self

    def drop(self) -> None:
        """Give back what it holds; nothing is written."""
        self.done = True
        if self._pages is not None:
            self._pages.close()
        self._pages = self._first = self._photo = self._writer = self._put = None
        for copy in self._copies:
            shutil.rmtree(copy.parent, ignore_errors=True)

    def _fetched(self):
        """The path of the input, or of a copy of one that is elsewhere."""
        if not places.is_url(self.item.input):
            return self.item.input
        self.how.limits.check_bytes(self.item.input, places.size(self.item.input))
        copy = places.fetch(self.item.input)
        self._copies[copy] = self.item.input
        return copy

    def _target(self):
        """The path to write at, in a folder that is there."""
        if places.is_url(self.item.output):
            copy = places.folder_for(self.item.output)
            self._copies[copy] = self.item.output
            return copy
        target = Path(self.item.output)
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _named(self, text):
        """With URLs in place of where their copies are."""
        for copy, url in self._copies.items():
            text = text.replace(str(copy), url)
        return text

    def _reason(self, error):
        message = str(error)
        if isinstance(error, OSError) and error.strerror:
            message = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
        elif not isinstance(error, ImageError):
            message = message.partition("\n")[0] or type(error).__name__  # torch goes on for pages
        message = self._named(message)
        return message if self.item.input in message else f"{self.item.input}: {message}"

    def _put_now(self):
        put, self._put = self._put, None
        if put is not None:
            put()

    def _is_there(self):
        if places.is_folder(self.item.output):
            raise ImageError(f"{self.item.output} is a folder, and the result would have that name")
        # A pipe or a device is written to.
        return not self.how.overwrite and places.is_file(self.item.output)

    @contextlib.contextmanager
    def _stage(self) -> Generator[None]:
        """Inside, what goes wrong is told by the record; and time and warnings are noted."""
        if self.done:
            yield
            return
        begin = time.perf_counter()
        try:
            with noted(self._notes):
                yield
        except BackendError:  # has nothing to do with the file
            raise
        except Exception as error:  # a file may be bad in any way, and the others are to be restored
            self.no_space = self._begun and _lacks_space(error)
            self._finish(FAILED, reason=self._reason(error))
        finally:
            seconds = self.record.seconds + time.perf_counter() - begin
            notes = tuple(map(self._named, self._notes))
            self.record = replace(self.record, seconds=seconds, notes=notes)

    def _finish(self, status, reason=None):
        self.record = replace(self.record, status=status, reason=reason)
        self.drop()


def restore_file(item: Item, restorer: Restorer, how: How = How()) -> Record:
    """Restore one file to one other, which is written whole or not at all; in this thread.

    What goes wrong is in the record, but what stops everything: KeyboardInterrupt, BackendError.
    """
    return finished(item, restorer, how).record


def finished(item: Item, restorer: Restorer, how: How = How()) -> Job:
    """The job of `restore_file` when it is done."""
    job = Job(item, how)
    try:
        return job.read().run(restorer).write()
    finally:
        job.drop()


def _there_already(item):
    reason = f"{item.output} is there already"
    with contextlib.suppress(OSError):  # the input need not be there any more
        if os.path.getmtime(item.output) < os.path.getmtime(item.input):
            reason += ", older than its input"
    return reason


def _lacks_space(error):
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__
    return False


def _mean(values):
    return sum(values) / len(values) if values else None
