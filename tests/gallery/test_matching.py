"""Which photos are compared with which."""

from pathlib import Path

import pytest

from mirnet_fast.gallery import comparisons
from mirnet_fast.images import ImageError


@pytest.fixture
def place(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    return tmp_path, make


def pairs(found, folder):
    return [
        (c.name, *(str(p.relative_to(folder)) if p else None for p in (c.before, c.after, c.clean)))
        for c in found
    ]


def test_two_files(place):
    folder, make = place
    make("x.jpg", "y.png")
    found, alone = comparisons(folder / "x.jpg", folder / "y.png")
    assert pairs(found, folder) == [("x.jpg", "x.jpg", "y.png", None)] and alone == []


def test_folders_by_name_and_else_without_suffix(place):
    folder, make = place
    make("a/1.jpg", "a/2.jpg", "a/sub/3.tif", "a/4.jpg", "a/4.png", "a/5.jpg", "a/.hidden.jpg", "a/text.txt")
    make("b/1.jpg", "b/2.png", "b/sub/3.png", "b/4.webp", "b/6.jpg", "c/1.bmp", "c/sub/3.tif")
    found, alone = comparisons(folder / "a", folder / "b", folder / "c")
    assert pairs(found, folder) == [
        ("1.jpg", "a/1.jpg", "b/1.jpg", "c/1.bmp"),
        ("2.jpg", "a/2.jpg", "b/2.png", None),
        ("sub/3.tif", "a/sub/3.tif", "b/sub/3.png", "c/sub/3.tif"),
    ]
    # Nobody knows of which of the two 4.webp was made.
    assert [Path(message.partition(":")[0]).name for message in alone] == ["2.jpg", "4.jpg", "4.png", "5.jpg"]


@pytest.mark.parametrize(
    ("before", "after", "clean", "told"),
    [
        ("a", "x.jpg", None, "must all be files, or all be folders"),
        ("x.jpg", "x.jpg", "a", "must all be files, or all be folders"),
        ("missing.jpg", "x.jpg", None, "missing.jpg: there is no such file or folder"),
        ("a", "empty", None, "empty: no images"),
        ("a", "b", None, "have no photos of the same names"),
    ],
)
def test_what_does_not_go_together(place, before, after, clean, told):
    folder, make = place
    make("x.jpg", "a/1.jpg", "b/2.jpg")
    (folder / "empty").mkdir()
    with pytest.raises(ImageError, match=told):
        comparisons(folder / before, folder / after, folder / clean if clean else None)
