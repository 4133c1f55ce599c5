"""Files that are written whole or not at all."""

import contextlib
import fcntl
import os
import secrets
import stat
from collections.abc import Generator
from pathlib import Path

_PREFIX = ".new-"
_HALVES = f"{_PREFIX}{'[0-9a-f]' * 8}*"


@contextlib.contextmanager
def replaced(path: str | Path) -> Generator[Path]:
    """A new path beside `path` to write a file at; at the end the file takes the place of `path`.

    Before that it is safe on the disk, so that a full disk, a limit or an end of the process leaves what
    was at `path` as it was. A symbolic link is replaced, not what it points to. What is no file, such as
    /dev/stdout, is yielded itself.

    The new path ends like `path`, as writers go by the suffix.

    Raises:
        OSError: `path` is a folder, or the file cannot be written.
    """
    path = Path(path)
    mode = _mode(path)
    if mode is not None and stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{path} is a folder")
    if mode is not None and not stat.S_ISREG(mode):
        yield path
        return
    with _held_new(path) as new:
        try:
            if mode is None or path.is_symlink():
                mode = new.stat().st_mode
            yield new
            with new.open("rb") as file:
                os.fsync(file.fileno())
            new.chmod(stat.S_IMODE(mode))
            os.replace(new, path)
        except BaseException:
            new.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


def remove_halves(folder: str | Path) -> None:
    """Remove what `replaced` left in a folder when a process was killed.

    What a process is still at is left alone, and all on a file system without locks.
    """
    for path in Path(folder).glob(_HALVES):
        with contextlib.suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def _held_new(path):
    """A new empty file beside `path`, with a lock on it that ends with this process, however it ends."""
    while True:
        # Short, as the name alone may be as long as the system allows. With the usual mode: some writers, as
        # that of safetensors, have one of their own.
        new = path.with_name(f"{_PREFIX}{secrets.token_hex(4)}{path.suffix}")
        with new.open("xb") as file:
            with contextlib.suppress(OSError):  # there are file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if new.exists():  # else `remove_halves` came before the lock
                yield new
                return


def _mode(path):
    """Of what is at the path, links followed; None where nothing is, as behind a broken link."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _sync_folder(folder):
    # The name, too; a file system that can't is none on which it would help.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
