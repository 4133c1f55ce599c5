"""What `restore` tells: lines for people, with a bar below them in a terminal, or lines of JSON."""

import json
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from .._progress import Progress

if TYPE_CHECKING:
    from ..collection import Item, Record, Summary
    from ..inference import Forecast

NAMED = 20  # failed files in the summary, at most


def printable(text: str) -> str:
    """In one line: what is no sign to be read, as a newline in a name, is written as Python does."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


class Report:
    """A context manager: inside, there is a bar on a terminal.

    Args:
        total: how many files there are.
        place: where to, for the summary; "" for beside the inputs.
        as_json: whether stdout gets lines of JSON alone, one a file and the summary last.
    """

    def __init__(self, total: int, place: str, as_json: bool) -> None:
        self.total, self.place, self.as_json = total, place, as_json
        self._out = sys.stdout  # also where Ray's is hushed
        self._bar = Progress(total, "images", transient=True)
        self._pixels, self._told, self._speed, self._begin = 0, 0, "", time.monotonic()

    def __enter__(self) -> "Report":
        self._bar.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.__exit__(*error)

    def tell(self, record: "Record") -> None:
        """What became of a file."""
        from ..collection import FAILED, RESTORED

        self._pixels += record.pixels if record.status == RESTORED else 0
        self._told += 1
        elapsed = max(time.monotonic() - self._begin, 1e-9)
        self._speed = f"{self._pixels / 1e6 / elapsed:.2f} megapixels a second"
        self._bar.at(self._told, self._speed)
        for note in record.notes:
            self.warn(f"{record.input}: {note}")
        if record.status == FAILED:
            self._say(f"error: {record.reason}", err=True)
        if self.as_json:
            self._json(record.as_json())
        elif record.status == RESTORED:
            self._say(_line(record))
            if record.mean_difference is not None:
                self._say(_of_tiles(record))

    def watch(self, item: "Item", part: float, forecast: "Forecast | None") -> None:
        """How far the network is with a large file."""
        self._bar.at(self._told + part, self._speed)
        if forecast is not None and forecast.strips > 1:
            self._say(f"{item.input}: {forecast}", err=True)

    def warn(self, text: str) -> None:
        self._say(f"warning: {text}", err=True)

    def end(self, summary: "Summary") -> None:
        """The summary."""
        if self.as_json:
            self._json(summary.as_json())
            return
        done = f"restored {summary.restored} of {self.total} image{'s' * (self.total != 1)}"
        parts = [f"{done} to {self.place}" if self.place else done]
        if summary.skipped:
            parts.append(f"skipped {summary.skipped} (--overwrite makes anew what is there)")
        if summary.failed:
            parts.append(f"{len(summary.failed)} failed")
        if summary.left:
            parts.append(f"{summary.left} left for another run")
        stopped = f"{summary.stopped}; " if summary.stopped else ""
        speed = f", {summary.megapixels_a_second:.2f} megapixels a second" if summary.restored else ""
        self._say(f"{stopped}{', '.join(parts)}; {summary.seconds:.1f} s{speed}")
        if self.total > 1:
            for record in summary.failed[:NAMED]:
                self._say(f"  failed: {record.reason}")
            if len(summary.failed) > NAMED:
                self._say(f"  and {len(summary.failed) - NAMED} more; --json names them all")

    def _json(self, row: dict[str, Any]) -> None:
        click.echo(json.dumps(row), self._out)

    def _say(self, text: str, err: bool = False) -> None:
        text = printable(text)
        stream = sys.stderr if err else self._out
        if self._bar.running and stream.isatty():
            self._bar.tell(text)
        else:
            click.echo(text, stream)


def _line(record: "Record") -> str:
    size = f"{record.width} x {record.height}" + (f", {record.pages} pages" if record.pages > 1 else "")
    noise = "" if record.noise is None else f", noise of {record.noise:.1f}/255"
    made = "" if record.strength in (None, 1) and not noise else f", strength {record.strength:.2f}"
    return f"{record.input} -> {record.output}: {size}{noise}{made}, {record.seconds:.1f} s"


def _of_tiles(record: "Record") -> str:
    off = f"{record.mean_difference:.2f}/255 on average, {record.largest_difference:.1f}/255 at most"
    return f"{record.output}: in tiles, so not exact: off by about {off}, measured on a sample"
