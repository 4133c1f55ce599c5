"""Which files are meant, and where their results go."""

import itertools
import os

import pytest

from mirnet_fast.collection import FAILED, SKIPPED, Item, ListingError, listed


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        "a.jpg",
        "b.PNG",
        "c.txt",
        "raw.NEF",
        ".d.jpg",
        "sub/a.jpg",
        "sub/deep/e.tif",
        "x.png/f.webp",
        ".h/g.jpg",
    ]
    for name in names:
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def pairs(listing):
    return [(item.input, item.output) for item in listing.items]


def test_a_folder_stands_for_all_below_it(tree):
    names = ["a.jpg", "b.PNG", "raw.NEF", "sub/a.jpg", "sub/deep/e.tif", "x.png/f.webp"]
    listing = listed(["in"], "out")
    assert pairs(listing) == [(f"in/{name}", f"out/{name}") for name in names]
    assert listing.settled == [] and listing.notes == []
    assert pairs(listed(["in/"], "out")) == [(f"in/{name}", f"out/{name}") for name in names]
    assert pairs(listed(["empty"], "out")) == []
    assert listed(["empty"], "out").notes == ["empty: no images in it"]


def test_the_folder_of_results_is_no_input(tree):
    (tree / "in" / "sub" / "out").mkdir()
    (tree / "in" / "sub" / "out" / "a.jpg").touch()
    found = [item.input for item in listed(["in"], "in/sub/out").items]
    assert "in/sub/a.jpg" in found and "in/sub/out/a.jpg" not in found
    assert "in/sub/out/a.jpg" in [item.input for item in listed(["in"], "elsewhere").items]


def test_links_to_folders_are_told_not_followed(tree):
    (tree / "in" / "sub" / "up").symlink_to("..")
    (tree / "in" / "loop.png").symlink_to("loop.png")
    (tree / "in" / "link.jpg").symlink_to("a.jpg")
    listing = listed(["in"], "out")
    found = [item.input for item in listing.items]
    assert len(found) == 8 and {"in/loop.png", "in/link.jpg"} < set(found)
    assert listing.notes == ["links to folders are not followed: in/sub/up"]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("in/*.jpg", ["in/a.jpg"]),
        ("in/?.*", ["in/a.jpg", "in/b.PNG", "in/c.txt", "in/x.png/f.webp"]),
        ("in/[ab].*", ["in/a.jpg", "in/b.PNG"]),
        ("in/**/e.*", ["in/sub/deep/e.tif"]),
        ("in/s*", ["in/sub/a.jpg", "in/sub/deep/e.tif"]),
    ],
)
def test_patterns(tree, pattern, found):
    assert [item.input for item in listed([pattern], "out/").items] == found


def test_a_name_that_looks_like_a_pattern(tree):
    for name in ("a[1].png", "a1.png", "*.png"):
        (tree / name).touch()
    assert pairs(listed(["a[1].png"], "out/")) == [("a[1].png", "out/a[1].png")]
    assert pairs(listed(["*.png"], "out/")) == [("*.png", "out/*.png")]
    (tree / "a[1].png").unlink()
    assert pairs(listed(["a[1].png"], "out/")) == [("a1.png", "out/a1.png")]


def test_a_pattern_of_nothing_and_a_missing_file(tree):
    listing = listed(["in/*.gif", "missing.png"], "out")
    (record,) = listing.settled
    assert record.status == FAILED and record.input == "in/*.gif" and "nothing matches it" in record.reason
    assert pairs(listing) == [("missing.png", "out/missing.png")]  # told when it is to be read


@pytest.mark.parametrize(
    ("inputs", "output", "target"),
    [
        (["in/a.jpg"], "b.png", "b.png"),
        (["in/a.jpg"], "b.png/", "b.png/a.jpg"),
        (["in/a.jpg"], "in/x.png", "in/x.png/a.jpg"),  # there is such a folder
        (["in/a.jpg"], "folder", "folder/a.jpg"),
        (["in/*.jpg"], "b.png", "b.png"),
        (["in/x.png"], "v1.2", "v1.2/f.webp"),
    ],
)
def test_out_is_a_file_or_a_folder(tree, inputs, output, target):
    assert [item.output for item in listed(inputs, output).items] == [target]


@pytest.mark.parametrize(
    ("inputs", "output", "match"),
    [
        (["in"], "b.png", "must be a folder, .*; got b.png .if that shall be a folder: b.png/"),
        (["in/a.jpg", "in/b.PNG"], "b.png", "must be a folder"),
        (["in/[ab].*"], "b.png", "must be a folder"),
        (["in"], "in/c.txt", "must be a folder"),
        (["in/a.jpg"], "noted", "must have a suffix"),
    ],
)
def test_out_does_not_suit(tree, inputs, output, match):
    (tree / "noted").touch()
    with pytest.raises(ListingError, match=match):
        listed(inputs, output)


def test_beside_the_inputs(tree):
    (tree / "in" / "a_restored.jpg").touch()
    listing = listed(["in", "in/sub/a.jpg"], suffix="_restored", format="png")
    assert pairs(listing)[:2] == [("in/a.jpg", "in/a_restored.png"), ("in/b.PNG", "in/b_restored.png")]
    assert len(listing.items) == 6  # in/sub/a.jpg once
    (record,) = listing.settled
    assert record.status == SKIPPED and record.input == "in/a_restored.jpg"
    with pytest.raises(ListingError, match="need a suffix"):
        listed(["in"])
    assert pairs(listed(["in/a.jpg"], "out/", suffix="_x")) == [("in/a.jpg", "out/a_x.jpg")]


def test_results_of_one_name_are_refused_by_name(tree):
    (tree / "in" / "a.png").touch()
    listing = listed(["in/a.jpg", "in/a.png", "in/b.PNG", "in/sub"], "out", format="png")
    assert pairs(listing) == [("in/b.PNG", "out/b.png"), ("in/sub/deep/e.tif", "out/deep/e.png")]
    assert [record.input for record in listing.settled] == ["in/a.jpg", "in/a.png", "in/sub/a.jpg"]
    assert (
        "in/a.jpg: the result would be out/a.png, as that of in/a.png, in/sub/a.jpg"
        in listing.settled[0].reason
    )


def test_no_input_is_overwritten(tree):
    (tree / "in" / "twin.png").hardlink_to(tree / "in" / "b.PNG")
    (tree / "out").mkdir()
    (tree / "out" / "a.jpg").symlink_to(tree / "in" / "a.jpg")
    assert [r.status for r in listed(["in/a.jpg"], "in").settled] == [FAILED]
    assert [r.status for r in listed(["in/a.jpg"], "out").settled] == [FAILED]
    assert [r.status for r in listed(["in/b.PNG"], "in/twin.png").settled] == [FAILED]
    assert listed(["in"], "in").items == []
    (tree / "in" / "b.jpg").touch()
    listing = listed(["in/a.jpg", "in/b.jpg", "in/b.PNG"], "in", format="PNG")
    assert pairs(listing) == [("in/a.jpg", "in/a.PNG")]
    assert "in/b.jpg: the result would overwrite the input in/b.PNG" in listing.settled[0].reason


def test_a_folder_that_cannot_be_read(tree, monkeypatch):
    scandir = os.scandir

    def refused(path):
        if path.endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    listing = listed(["in"], "out")
    assert [(r.status, r.reason) for r in listing.settled] == [
        (FAILED, "in/sub/deep: the folder cannot be read: Permission denied")
    ]
    assert len(listing.items) == 5


def test_every_item_is_one_workers(tree):
    listing = listed(["in"], "out")
    shards = [listing.shard(i, 3) for i in range(3)]
    assert sorted(itertools.chain(*shards), key=lambda item: item.input) == listing.items
    listing.items.insert(0, Item("in/new.png", "out/new.png"))
    assert all(set(before) <= set(listing.shard(i, 3)) for i, before in enumerate(shards))
