"""Which files are meant by what was given, and where the result of each goes."""

import glob
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..images import FORMATS, READABLE, hidden
from . import places
from .records import FAILED, SKIPPED, Record


class ListingError(ValueError):
    """The output doesn't suit the inputs; the message says why."""


@dataclass(frozen=True)
class Item:
    """A file, and where its result goes."""

    input: str
    output: str


@dataclass
class Listing:
    """What is to be done.

    Attributes:
        items: in the order in which they were given, those of a folder by name.
        settled: of what is left out or refused before work begins.
        notes: what else is to be known, sentences.
    """

    items: list[Item] = field(default_factory=list)
    settled: list[Record] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def shard(self, index: int, count: int) -> list[Item]:
        """The items of one of `count` workers, 0 to count - 1.

        An item is always the same worker's, whatever else was found by then.
        """
        return [item for item in self.items if zlib.crc32(os.fsencode(item.input)) % count == index]


def listed(
    inputs: Sequence[str], output: str | None = None, suffix: str = "", format: str | None = None
) -> Listing:
    """What the inputs mean.

    A folder stands for the images in it and all below it, by their names' suffixes (`READABLE`); what is
    hidden, and links to folders, are left out, and so is `output` if it lies in there. What is no file or
    folder but looks like a pattern (*, ?, [...], ** for folders at any depth) stands for what matches it.

    URLs as fsspec has them (s3://, gs://) are files, folders and patterns too.

    Args:
        inputs: files, folders, patterns.
        output: a file if there is one input, which is no folder, and `output` has a suffix, doesn't end in
            / and is no folder; else a folder. It gets files of the inputs' names, or, of what was found in
            a folder, of their paths in that. None: results go beside their inputs.
        suffix: is added to the name of each result before its last dot. A file with such a name is taken for
            a result and left out where results go beside their inputs.
        format: of the results, such as "png"; if not given, that of the inputs.

    Raises:
        ListingError: `output` is a file and there are several inputs, or `format` was given; or neither
            `output` nor `suffix` was given; or there is no way to a URL.
    """
    try:
        return _listed([*map(places.local, inputs)], output and places.local(output), suffix, format)
    except places.PlaceError as error:
        raise ListingError(str(error)) from error


def _listed(inputs, output, suffix, format):
    if output is None and not suffix:
        raise ListingError("results beside their inputs need a suffix to their names")
    listing = Listing()
    found = list(_found(inputs, output, listing))
    into_file = output is not None and _is_file(inputs, found, output)
    if into_file and format is not None:
        raise ListingError(f"--format is for a folder OUT; {output} has a suffix of its own")
    candidates = {}
    for path, below in found:
        if output is None:
            if os.path.splitext(path)[0].endswith(suffix):
                reason = f"{path}: taken for a result, as its name ends in {suffix}"
                listing.settled.append(Record(path, None, SKIPPED, reason))
                continue
            target = path
        else:
            target = output if into_file else os.path.join(output, below)
        stem, last = os.path.splitext(target)
        candidates.setdefault((path, stem + suffix + (f".{format}" if format else last)))
    _refuse(list(candidates), listing)
    return listing


def _found(inputs, output, listing) -> Iterator[tuple[str, str]]:
    """(path, its path below the folder in which it was found; without one its name)."""
    for given in inputs:
        try:
            yield from _found_by(given, output, listing)
        except Exception as error:  # of any kind, by the store: nobody is let in, it cannot be reached
            if not places.is_url(given) or isinstance(error, places.PlaceError):
                raise
            reason = f"{given} cannot be listed: {str(error) or type(error).__name__}"
            listing.settled.append(Record(given, None, FAILED, reason))


def _found_by(given, output, listing):
    paths = [given]
    if glob.has_magic(given) and not places.is_there(given):
        url = places.is_url(given)
        paths = places.matching(given) if url else sorted(glob.glob(given, recursive=True))
        if not paths:
            reason = f"{given}: there is no such file, and nothing matches it as a pattern"
            listing.settled.append(Record(given, None, FAILED, reason))
    for path in paths:
        if not places.is_folder(path):
            yield path, os.path.basename(path)
            continue
        count = 0
        inside_of = _below_url if places.is_url(path) else _below
        for inside in inside_of(path, output, listing):
            count += 1
            yield inside, os.path.relpath(inside, path)
        if not count:
            listing.notes.append(f"{path}: no images in it")


def _below(folder, output, listing) -> Iterator[str]:
    """The images in a folder and all below it."""
    out = _identity(output)
    waiting, links = [folder], []
    while waiting:
        place = waiting.pop()
        try:
            with os.scandir(place) as scanned:
                entries = sorted(scanned, key=lambda entry: entry.name)
        except OSError as error:
            listing.settled.append(
                Record(place, None, FAILED, f"{place}: the folder cannot be read: {error.strerror}")
            )
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                if _identity(entry.path) != out or out is None:
                    folders.append(entry.path)
            elif os.path.isdir(entry.path):
                links.append(entry.path)
            elif os.path.splitext(entry.name)[1].lower() in READABLE:
                yield entry.path
        waiting += reversed(folders)
    if links:
        more = f" and {len(links) - 5} more" if len(links) > 5 else ""
        listing.notes.append(f"links to folders are not followed: {', '.join(links[:5])}{more}")


def _below_url(folder, output, listing) -> Iterator[str]:
    """The same of a folder elsewhere."""
    base = str(_identity(folder))
    out = f"{_identity(output)}/" if output is not None and places.is_url(output) else None
    if out is not None and f"{base}/".startswith(out):
        out = None
    for url in places.below(folder):
        name = os.path.relpath(url, base)
        suited = os.path.splitext(name)[1].lower() in READABLE and not hidden(name)
        if suited and not (out is not None and url.startswith(out)):
            yield url


def _is_file(inputs, found, output):
    """Whether `output` is a file and not a folder."""
    if output.endswith(os.sep) or places.is_folder(output):
        return False
    there, suffix = places.is_there(output), os.path.splitext(output)[1].lower()
    if len(found) <= 1 and not any(places.is_folder(path) for path in inputs):
        if suffix:
            return True
        if there:
            raise ListingError(f"OUT must have a suffix that says its format, or be a folder; got {output}")
    elif there or suffix in FORMATS:
        hint = "" if there else f" (if that shall be a folder: {output}{os.sep})"
        raise ListingError(f"OUT must be a folder, as IN may be several images; got {output}{hint}")
    return False


def _refuse(candidates, listing):
    """Sort out what would overwrite an input, or the result of another."""
    # Not all have one: what is missing is told when it is to be read.
    given = {_identity(path): path for path, _ in candidates}
    by_output: dict[str, list[str]] = {}
    for path, target in candidates:
        by_output.setdefault(os.path.abspath(target), []).append(path)
    for path, target in candidates:
        there, same = _identity(target), by_output[os.path.abspath(target)]
        reason = None
        if there is not None and there in given:
            reason = f"{path}: the result would overwrite the input {given[there]}"
        elif len(same) > 1:
            others = ", ".join(other for other in same if other != path)
            reason = f"{path}: the result would be {target}, as that of {others}; nothing was done for either"
        if reason:
            listing.settled.append(Record(path, target, FAILED, reason))
        else:
            listing.items.append(Item(path, target))


def _identity(path):
    """What all names of one file have in common; None where there is none."""
    if path is not None and places.is_url(path):
        files, inside = places.opened(path)
        return files.unstrip_protocol(inside.rstrip("/"))
    try:
        status = os.stat(path)
    except (OSError, ValueError, TypeError):
        return None
    return status.st_dev, status.st_ino
