"""What is warned of meanwhile, by the file that it is about, though several threads are at work."""

import contextlib
import threading
import warnings
from collections.abc import Generator
from contextvars import ContextVar

_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)
_lock = threading.Lock()
_inside = 0
_before = warnings.catch_warnings()


@contextlib.contextmanager
def noted(notes: list[str]) -> Generator[None]:
    """Inside, what this thread is warned of is added to `notes` and not shown."""
    token = _notes.set(notes)
    _enter()
    try:
        yield
    finally:
        _leave()
        _notes.reset(token)


def _enter():
    # warnings.catch_warnings is the whole process's: the first in sets it up, the last out takes it back.
    global _inside, _before
    with _lock:
        _inside += 1
        if _inside == 1:
            _before = warnings.catch_warnings()
            _before.__enter__()
            warnings.simplefilter("always")
            shown = warnings.showwarning

            def show(message, *rest, **more):
                notes = _notes.get()
                if notes is None:
                    shown(message, *rest, **more)
                elif str(message) not in notes:
                    notes.append(str(message))

            warnings.showwarning = show


def _leave():
    global _inside
    with _lock:
        _inside -= 1
        if not _inside:
            _before.__exit__(None, None, None)
