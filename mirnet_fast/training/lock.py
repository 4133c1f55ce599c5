"""One training at a time in a folder."""

import contextlib
import errno
import fcntl
import os
import socket
import warnings
from collections.abc import Generator
from pathlib import Path

NAME = ".training"

# A file system's answers if it has no locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)
_held = set()


class LockedError(Exception):
    """Another training is running in the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Generator[None]:
    """Inside, no other training runs in the folder. However a process ends, its lock ends with it.

    Raises:
        LockedError: another one does.
        OSError: nothing can be written in the folder.
    """
    path = folder / NAME
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            by = file.read().strip()
            file.close()
            raise LockedError(f"another training is running in {folder}{by and f', {by}'}") from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                file.close()
                raise
            warnings.warn(
                f"the file system of {folder} has no locks: see that only one training runs in it",
                stacklevel=3,
            )
        if _is_at(file, path):
            break
        file.close()  # the training before has just ended, and taken its file away
    _held.add(file)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} of {socket.gethostname()}\n")
        file.flush()
        yield
    finally:
        _held.remove(file)
        path.unlink(missing_ok=True)
        file.close()


def _is_at(file, path):
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _let_go():
    # A worker of a DataLoader would hold the lock for as long as it outlives the training.
    for file in _held:
        file.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)
