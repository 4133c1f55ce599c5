"""The image files of folders."""

from pathlib import Path

from .kinds import FORMATS, ImageError
from .others import RAW

# Suffixes of what can be read, by `read_photo`.
READABLE = frozenset({*FORMATS, *RAW, ".heic", ".heif"})


def hidden(path: str | Path) -> bool:
    """Whether a name in a relative path begins with a dot.

    So do the `._x.jpg` that macOS puts beside x.jpg, and Jupyter's folders of copies.
    """
    return any(part.startswith(".") for part in Path(path).parts)


def photos_below(folder: str | Path) -> list[Path]:
    """The image files of a folder and all below it, sorted, but hidden ones.

    Raises:
        ImageError: the folder is not there or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: there is no such folder")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in FORMATS and not hidden(path.relative_to(folder)) and not path.is_dir()
    )
    if not found:
        raise ImageError(f"{folder}: no images ({', '.join(FORMATS)}) in it")
    return found


def matching_photos(inputs: str | Path, targets: str | Path) -> list[tuple[Path, Path]]:
    """[(input, target)] of the image files that two folders hold under the same names.

    Raises:
        ImageError: a folder is not there, or a name is only in one of them.
    """
    by_name = [{path.relative_to(f): path for path in photos_below(f)} for f in (inputs, targets)]
    alone = sorted(by_name[0].keys() ^ by_name[1].keys())
    if alone:
        listed = ", ".join(map(str, alone[:5])) + (f" and {len(alone) - 5} more" if len(alone) > 5 else "")
        raise ImageError(f"{inputs} and {targets} must hold the same names; only in one of them: {listed}")
    return [(by_name[0][name], by_name[1][name]) for name in sorted(by_name[0])]
