"""Where files are: a path on this machine, or a URL (s3://, gs://, ...) of what fsspec knows."""

import contextlib
import errno
import glob
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

from ..images import Limits

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_HERE = re.compile(r"(file|local)://")
# Where a file has its name only when all of it is there; elsewhere it is given that afterwards.
_WHOLE_AT_ONCE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"}


class PlaceError(ValueError):
    """No package is installed for URLs of that kind, or there are none."""


def is_url(path: str) -> bool:
    return _URL.match(path) is not None


def plain(path: str) -> str:
    """A file:// URL as a path of this machine, all else as it is."""
    if not _HERE.match(path):
        return path
    inside = _opened(path)[1]
    return inside + "/" if path.endswith("/") and inside != "/" else inside


def check(path: str) -> None:
    """Raises PlaceError where nothing can open such a URL."""
    if is_url(path):
        _opened(path)


def is_folder(path: str) -> bool:
    if not is_url(path):
        return os.path.isdir(path)
    system, inside = _opened(path)
    return system.isdir(inside)


def exists(path: str) -> bool:
    """Whether something has that name, though it be a link to nothing."""
    if not is_url(path):
        return os.path.lexists(path)
    system, inside = _opened(path)
    return system.exists(inside)


def is_there(path: str) -> bool:
    """Whether a result is there: a file, not a pipe or a device, which are written to.

    Raises:
        IsADirectoryError: it is a folder.
    """
    if is_url(path):
        system, inside = _opened(path)
        system.invalidate_cache(inside.rpartition("/")[0])  # others write there, too
        try:
            kind = system.info(inside)["type"]
        except FileNotFoundError:
            return False
        folder, file = kind == "directory", kind == "file"
    else:
        folder, file = os.path.isdir(path), os.path.isfile(path)
    if folder:
        raise IsADirectoryError(f"{path} is a folder, and the result would have that name")
    return file


def written(path: str) -> float | None:
    """When a file was written, in seconds since 1970; None where that is not known."""
    with contextlib.suppress(OSError, NotImplementedError, KeyError):
        if not is_url(path):
            return os.path.getmtime(path)
        system, inside = _opened(path)
        return system.modified(inside).timestamp()
    return None


def identity(path: str | None) -> object:
    """What all names of one file have in common; None where there is none on this machine."""
    if path is not None and is_url(path):
        return absolute(path)
    try:
        status = os.stat(path)  # pyrefly: ignore[bad-argument-type]
    except (OSError, ValueError, TypeError):
        return None
    return status.st_dev, status.st_ino


def absolute(path: str) -> str:
    if not is_url(path):
        return os.path.abspath(path)
    system, inside = _opened(path)
    return system.unstrip_protocol(inside.rstrip("/"))


def folders(paths: Iterable[str]) -> set[str]:
    """In which the files lie that are on this machine."""
    return {os.path.dirname(path) or os.curdir for path in paths if not is_url(path)}


def matching(pattern: str) -> list[str]:
    """What matches a pattern (*, ?, [...], **), sorted."""
    if not is_url(pattern):
        return sorted(glob.glob(pattern, recursive=True))
    system, inside = _opened(pattern)
    return [system.unstrip_protocol(path) for path in sorted(system.glob(inside))]


def below(folder: str) -> Iterator[tuple[str, str]]:
    """(URL, its path below the folder) of all files below a folder that is a URL, sorted."""
    system, inside = _opened(folder)
    start = len(inside.rstrip("/")) + 1
    for path in sorted(system.find(inside)):
        yield system.unstrip_protocol(path), path[start:]


class Copies:
    """The files of an item on this machine, while it is worked on: temporary ones for URLs."""

    def __init__(self, input: str, output: str) -> None:
        self._given = {"input": input, "output": output}
        self._folder: str | None = None

    @property
    def input(self) -> str:
        return self._path("input")

    @property
    def output(self) -> str:
        return self._path("output")

    def fetch(self, limits: Limits) -> None:
        """Have the input at `input`.

        Raises:
            ImageError: it is larger than the limits allow; then it isn't fetched.
            OSError: there is no such file.
        """
        url = self._given["input"]
        if not is_url(url):
            return
        system, inside = _opened(url)
        try:
            size = system.info(inside).get("size")
            if size is not None:
                limits.check_bytes(url, size)
            system.get_file(inside, self.input)
        except FileNotFoundError as error:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error

    def send(self) -> None:
        """Have what is at `output` where it belongs, whole or not at all."""
        url = self._given["output"]
        if not is_url(url):
            return
        system, inside = _opened(url)
        folder = inside.rpartition("/")[0]
        if url.partition("://")[0].lower() in _WHOLE_AT_ONCE:
            system.put_file(self.output, inside)
            return
        system.makedirs(folder, exist_ok=True)
        new = f"{folder}/.new-{secrets.token_hex(4)}{os.path.splitext(inside)[1]}"
        try:
            system.put_file(self.output, new)
            system.mv(new, inside)
        except BaseException:
            with contextlib.suppress(Exception):
                system.rm_file(new)
            raise

    def named(self, text: str) -> str:
        """A text with the names that were given in place of those of temporary files."""
        for name, given in self._given.items() if self._folder else ():
            text = text.replace(self._path(name), given)
        return text

    def close(self) -> None:
        """Remove what is temporary."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _path(self, name):
        given = self._given[name]
        if not is_url(given):
            return given
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="mirnet_fast-")
        return os.path.join(self._folder, name + os.path.splitext(given)[1])


def _opened(url) -> tuple[Any, str]:
    """The file system, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        hint = "; try: pip install 'mirnet-fast[remote]'" if isinstance(error, ImportError) else ""
        raise PlaceError(f"{url} cannot be opened: {error}{hint}") from error
