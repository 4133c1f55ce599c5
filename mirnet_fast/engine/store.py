"""A temporary file without a name, for maps that do not fit in memory: written behind, read ahead."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

SPARE = 2**28  # bytes that stay free


class Store:
    """Some bytes in a file that has no name, so that it goes with the process or before.

    What is written or read goes by threads of its own, in order. Used in a `with`, at whose end the file is
    gone and the threads have ended.

    Args:
        folder: where the file is.
        nbytes: its size, which is taken from the file system now.

    Raises:
        OSError: there is not so much space, or no file can be made there; names place, need and what is free.
    """

    def __init__(self, folder: str, nbytes: int) -> None:
        check_space(folder, nbytes)
        try:
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        except OSError as error:
            raise OSError(
                error.errno, f"no temporary file can be made in {folder}: {error.strerror}"
            ) from error
        try:
            os.posix_fallocate(self._file.fileno(), 0, nbytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                self._file.close()
                raise _no_space(folder, nbytes) from error
        self._readers, self._writers = (
            ThreadPoolExecutor(1, f"mirnet_fast-{name}") for name in ("reads", "writes")
        )

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *error: object) -> None:
        for threads in (self._readers, self._writers):
            threads.shutdown(wait=True, cancel_futures=True)
        self._file.close()

    def read(self, into: memoryview, offset: int) -> "Future[None]":
        """Fills `into` from byte `offset` on."""
        return self._readers.submit(self._all, os.preadv, into, offset)

    def write(self, data: memoryview, offset: int) -> "Future[None]":
        """Writes `data`, which must stay as it is until that is done."""
        return self._writers.submit(self._all, os.pwritev, data, offset)

    def _all(self, function, data, offset):
        while len(data):
            done = function(self._file.fileno(), [data], offset)
            if done <= 0:
                raise OSError(errno.EIO, "the temporary file is shorter than it was")
            data, offset = data[done:], offset + done


def check_space(folder: str, nbytes: int) -> None:
    """
    Raises:
        OSError: a file of so many bytes cannot be made in the folder.
    """
    try:
        status = os.statvfs(folder)
    except OSError as error:
        raise OSError(error.errno, f"no temporary file can be made in {folder}: {error.strerror}") from error
    if nbytes + SPARE > status.f_bavail * status.f_frsize:
        raise _no_space(folder, nbytes)


def _no_space(folder, nbytes):
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    text = (
        f"a temporary file of {nbytes / 1e9:.2f} GB does not fit in {folder}, where {free / 1e9:.2f} are free"
    )
    return OSError(errno.ENOSPC, f"{text}; name another folder, or allow more memory")


def default_folder() -> str:
    """The system's place for temporary files; if that is memory and /var/tmp is not, that."""
    folder = tempfile.gettempdir()
    if "TMPDIR" not in os.environ and is_in_memory(folder) and os.access("/var/tmp", os.W_OK):
        return folder if is_in_memory("/var/tmp") else "/var/tmp"
    return folder


def is_in_memory(folder: str) -> bool:
    """Whether files in a folder are in memory (tmpfs); False where that cannot be told."""
    with contextlib.suppress(OSError):
        path, best, kind = Path(folder).resolve(), -1, ""
        for place, found in _mounts():
            if path.is_relative_to(place) and len(place) >= best:
                best, kind = len(place), found
        return kind in ("tmpfs", "ramfs")
    return False


def _mounts() -> Iterator[tuple[str, str]]:
    """(place, file system) of what is mounted; of two at one place the later counts."""
    for line in Path("/proc/self/mounts").read_text(errors="replace").splitlines():
        _, place, kind, *_ = line.split(" ")
        yield place.replace("\\040", " "), kind
