"""Files here and elsewhere (s3://, gs:// and what else fsspec knows): asked for, fetched and put."""

import errno
import os
import re
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
# Where what is put appears once it is whole, and moving it would copy it.
_WHOLE = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss"}


class PlaceError(ValueError):
    """A URL cannot be used; the message says why."""


def is_url(path: str) -> bool:
    return bool(_URL.match(path))


def local(path: str) -> str:
    """The path in a URL of a file here, as file:///a.png; any other as it is."""
    return path.partition("://")[2] if path.lower().startswith("file://") else path


def is_folder(path: str) -> bool:
    if not is_url(path):
        return os.path.isdir(path)
    files, inside = opened(path)
    return files.isdir(inside)


def is_file(path: str) -> bool:
    """Whether there is a regular file."""
    if not is_url(path):
        return os.path.isfile(path)
    files, inside = opened(path)
    files.invalidate_cache(inside.rpartition("/")[0])  # of what was listed: others write there, too
    return files.isfile(inside)


def is_there(path: str) -> bool:
    """Whether there is anything, if only a link that leads nowhere."""
    if not is_url(path):
        return os.path.lexists(path)
    files, inside = opened(path)
    return files.exists(inside)


def folders(paths: Iterable[str]) -> set[str]:
    """In which the files lie that are here."""
    return {os.path.dirname(path) or os.curdir for path in paths if not is_url(path)}


def below(url: str) -> Iterator[str]:
    """URLs of all files below a folder elsewhere, by name."""
    files, inside = opened(url)
    return map(files.unstrip_protocol, sorted(files.find(inside)))


def matching(url: str) -> list[str]:
    """URLs of what matches a pattern elsewhere, by name."""
    files, inside = opened(url)
    return [*map(files.unstrip_protocol, sorted(files.glob(inside)))]


def size(url: str) -> int:
    """Bytes of a file elsewhere.

    Raises:
        OSError: it is not there, or cannot be asked for.
    """
    files, inside = opened(url)
    try:
        return files.size(inside) or 0
    except FileNotFoundError as error:  # with another path, and no more
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from error


def fetch(url: str) -> Path:
    """A copy of a file elsewhere, in a new folder of its own, which the caller removes."""
    files, inside = opened(url)
    copy = folder_for(url)
    try:
        files.get_file(inside, str(copy))
    except BaseException:
        copy.unlink(missing_ok=True)
        copy.parent.rmdir()
        raise
    return copy


def put(copy: Path, url: str) -> None:
    """Put a file elsewhere; it is whole there once it is there."""
    files, inside = opened(url)
    parent, _, name = inside.rpartition("/")
    files.makedirs(parent, exist_ok=True)
    if url.partition("://")[0].lower() in _WHOLE:
        files.put_file(str(copy), inside)
        return
    new = f"{parent}/.new-{secrets.token_hex(4)}{os.path.splitext(name)[1]}"
    try:
        files.put_file(str(copy), new)
        files.mv(new, inside)
    except BaseException:
        if files.exists(new):
            files.rm_file(new)
        raise


def folder_for(url: str) -> Path:
    """The path of a file of that name in a new folder here, which the caller removes."""
    return Path(tempfile.mkdtemp(prefix="mirnet_fast-"), url.rpartition("/")[2])


def opened(url: str) -> tuple[Any, str]:
    """(fsspec's file system of a URL, the path in it).

    Raises:
        PlaceError: there is no such file system, or what it needs is not installed.
    """
    try:
        import fsspec
    except ImportError as error:
        raise PlaceError(f"{url} needs fsspec ({error}); try: pip install 'mirnet-fast[remote]'") from error
    try:
        return fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise PlaceError(f"{url} cannot be used: {error}") from error
