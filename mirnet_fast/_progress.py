"""How far a long task is: a bar on stderr in a terminal; elsewhere, where asked for, a line a minute."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
EVERY = 60.0  # seconds between lines


class Progress:
    """A context manager: inside, `advance` and `at` show what is done.

    Args:
        total: how many there are in all.
        unit: what of, in the plural.
        done: how many were done before.
        shown: whether anything is shown.
        lines: whether there are lines where stderr is no terminal.
        transient: whether the bar is gone in the end.

    Attributes:
        running: whether there is a bar to be seen.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        done: int = 0,
        shown: bool = True,
        lines: bool = False,
        transient: bool = False,
    ) -> None:
        from rich import progress
        from rich.console import Console

        console = Console(stderr=True)
        columns = (
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn(f"{unit} {{task.fields[note]}}", markup=False),
            progress.TimeElapsedColumn(),
            progress.TimeRemainingColumn(elapsed_when_finished=False),
        )
        self._bar = progress.Progress(
            *columns,
            console=console,
            disable=not (shown and console.is_terminal),
            transient=transient,
            redirect_stdout=False,  # or what a forked process prints might wait for our lock
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=total, completed=done, note="")
        self._lines = lines and shown and not console.is_terminal
        self._done: float = done
        self._total, self._unit, self._told = total, unit, time.monotonic()

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    @property
    def running(self) -> bool:
        return self._bar.live.is_started and not self._bar.disable

    def advance(self, note: str = "") -> None:
        """One more is done; `note` stands beside it."""
        self.at(self._done + 1, note)

    def at(self, done: float, note: str = "") -> None:
        """So many are done, and a part of the next."""
        self._done = done
        self._bar.update(self._task, completed=done, note=note)
        if self._lines and (self._done == self._total or time.monotonic() - self._told >= EVERY):
            self._told = time.monotonic()
            self.tell(f"{self._done} of {self._total} {self._unit} {note}".rstrip())

    def tell(self, text: str) -> None:
        """A line on stderr, above the bar."""
        if self._bar.disable:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)


def followed(items: Iterable[Item], total: int, unit: str) -> Iterator[Item]:
    """The items, with a bar that advances with each."""
    with Progress(total, unit) as bar:
        for item in items:
            yield item
            bar.advance()
