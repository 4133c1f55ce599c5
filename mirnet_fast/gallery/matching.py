"""Which photos belong together: those of one name, whatever their format."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..images import ImageError, photos_below


@dataclass(frozen=True)
class Comparison:
    """A photo before and after, of one size.

    Attributes:
        name: what the page calls it.
        before, after: the files.
        clean: the file of the original that `before` was made from, where there is one.
        seconds: that the restoration took, if known.
        notes: what else is to be read beside it.
    """

    name: str
    before: Path
    after: Path
    clean: Path | None = None
    seconds: float | None = None
    notes: tuple[str, ...] = ()


def comparisons(
    before: str | Path, after: str | Path, clean: str | Path | None = None
) -> tuple[list[Comparison], list[str]]:
    """([Comparison], [what has no counterpart, each a sentence]).

    Two files, or two folders whose files have the same names below them; where there is none of the very
    name, the one that only differs in its suffix.

    Raises:
        ImageError: something is not there, a file is given with a folder, or no two files belong together.
    """
    before, after, clean = Path(before), Path(after), Path(clean) if clean is not None else None
    given = [path for path in (before, after, clean) if path is not None]
    for path in given:
        if not path.exists():
            raise ImageError(f"{path}: there is no such file or folder")
    folders = [path.is_dir() for path in given]
    if any(folders) and not all(folders):
        raise ImageError(f"{' and '.join(map(str, given))} must all be files, or all be folders")
    if not any(folders):
        return [Comparison(before.name, before, after, clean)], []
    results, originals = _Names(after), _Names(clean) if clean is not None else None
    found, alone = [], []
    photos = _Names(before)
    for name, path in photos.paths.items():
        result = results.like(name, photos)
        if result is None:
            alone.append(f"{path}: there is none of that name in {after}")
            continue
        original = originals.like(name, photos) if originals else None
        if originals and original is None:
            alone.append(f"{path}: there is none of that name in {clean}, so nothing is known of its error")
        found.append(Comparison(name.as_posix(), path, result, original))
    if not found:
        raise ImageError(f"{before} and {after} have no photos of the same names")
    return found, alone


class _Names:
    """The photos of a folder: {relative path: path}."""

    def __init__(self, folder):
        self.paths = {path.relative_to(folder): path for path in photos_below(folder)}
        self.stems = Counter(name.with_suffix("") for name in self.paths)

    def like(self, name, others):
        """The one that belongs to `name`, one of `others`, or None."""
        if name in self.paths:
            return self.paths[name]
        stem = name.with_suffix("")
        if self.stems[stem] != 1 or others.stems[stem] != 1:  # a.jpg and a.png: nobody knows whose a.tif is
            return None
        return next(path for own, path in self.paths.items() if own.with_suffix("") == stem)
