"""Inputs and outputs at URLs, in fsspec's store in memory, and in one that stands for S3."""

import os
import tempfile

import cv2
import fsspec
import numpy as np
import pytest

from mirnet_fast.collection import FAILED, SKIPPED, How, ListingError, listed, restore_file, restore_files
from mirnet_fast.images import Limits


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A store that is empty; temporary files go to tmp_path/temporary."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    store = fsspec.filesystem("memory")
    store.store.clear()
    store.pseudo_dirs[:] = [""]
    yield store
    store.store.clear()
    assert os.listdir(tmp_path / "temporary") == []  # all that was temporary is gone


def png(seed=0, side=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    return pixels, cv2.imencode(".png", pixels)[1].tobytes()


def pairs(listing):
    return [(item.input, item.output) for item in listing.items]


def names(store):
    return sorted(path for path in store.store)


def test_a_folder_to_a_folder_and_again(memory, restorer):
    made = {name: png(seed) for seed, name in enumerate(["a.png", "sub/b.PNG", "sub/deep/c.png"])}
    for name, (_, data) in made.items():
        memory.pipe_file(f"/in/{name}", data)
    for name in ("notes.txt", ".hidden.png", "sub/.cache/d.png", "out/old.png"):
        memory.pipe_file(f"/in/{name}", b"")
    items = listed(["memory://in"], "memory://in/out").items
    assert [(i.input, i.output) for i in items] == [
        (f"memory:///in/{name}", f"memory://in/out/{name}") for name in made
    ]
    summary = restore_files(items, restorer)
    assert (summary.restored, summary.failed) == (3, [])
    before = names(memory)
    assert not any(".new-" in name for name in before)
    for name, (pixels, _) in made.items():
        result = np.frombuffer(memory.cat_file(f"/in/out/{name}"), np.uint8)
        assert np.array_equal(cv2.imdecode(result, -1), pixels)
    records = []
    memory.rm_file("/in/out/a.png")
    again = restore_files(listed(["memory://in"], "memory://in/out").items, restorer, tell=records.append)
    assert (again.restored, again.skipped) == (1, 2) and names(memory) == before
    assert records[1].status == SKIPPED and "b.PNG is there already" in records[1].reason
    assert restore_files(items, restorer, How(overwrite=True)).restored == 3


def test_from_and_to_this_machine(memory, restorer, tmp_path):
    pixels, data = png()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(data)
    listing = listed([f"file://{tmp_path}/in"], "memory://there/")
    assert pairs(listing) == [(f"{tmp_path}/in/a.png", "memory://there/a.png")]
    assert restore_files(listing.items, restorer).restored == 1
    listing = listed(["memory://there/*.png"], f"file://{tmp_path}/back/", format="tif")
    assert pairs(listing) == [("memory:///there/a.png", f"{tmp_path}/back/a.tif")]
    assert restore_file(listing.items[0], restorer).status == "restored"
    assert np.array_equal(cv2.imread(str(tmp_path / "back" / "a.tif")), pixels)
    assert pairs(listed(["memory://there/a.png"], "memory://there/b.png")) == [
        ("memory://there/a.png", "memory://there/b.png")
    ]
    assert pairs(listed(["memory://there"], suffix="_x")) == [
        ("memory:///there/a.png", "memory:///there/a_x.png")
    ]


def test_what_is_wrong_is_told_by_its_name(memory, restorer):
    memory.pipe_file("/in/broken.png", b"\x89PNG\r\n\x1a\nbroken")
    memory.pipe_file("/in/large.png", png(side=64)[1])
    memory.makedirs("/out/folder.png")
    inputs = ["memory://in/broken.png", "memory://in/large.png", "memory://in/missing.png"]
    told = [
        restore_file(item, restorer, How(limits=Limits(bytes=1000)))
        for item in listed(inputs, "memory://out/").items
    ]
    assert [record.status for record in told] == [FAILED] * 3
    assert told[0].reason.startswith("memory://in/broken.png ") or told[0].reason.startswith(
        "memory://in/broken.png: "
    )
    assert "input.png" not in told[0].reason
    assert told[1].reason.startswith("memory://in/large.png is too large: ")
    assert told[2].reason == "memory://in/missing.png: No such file or directory"
    assert [name for name in names(memory) if name.startswith("/out/")] == []
    (item,) = listed(["memory://in/large.png"], "memory://out/folder.png").items or [None]
    assert item.output == "memory://out/folder.png/large.png"


def test_no_more_than_the_limit_is_fetched(memory, restorer, monkeypatch):
    memory.pipe_file("/in/large.png", png(side=64)[1])
    monkeypatch.setattr(type(memory), "get_file", lambda *args: pytest.fail("was fetched"))
    (item,) = listed(["memory://in/large.png"], "memory://out/").items
    assert "too large" in restore_file(item, restorer, How(limits=Limits(bytes=1000))).reason


def test_what_breaks_off_leaves_nothing(memory, restorer, monkeypatch):
    memory.pipe_file("/in/a.png", png()[1])
    (item,) = listed(["memory://in/a.png"], "memory://out/").items
    put_file = type(memory).put_file

    def broken(self, source, target, **options):
        put_file(self, source, target, **options)
        self.store[target].truncate(10)
        raise ConnectionError("reset by peer")

    with monkeypatch.context() as patched:
        patched.setattr(type(memory), "put_file", broken)
        record = restore_file(item, restorer)
    assert record.status == FAILED and record.reason == "memory://in/a.png: reset by peer"
    assert names(memory) == ["/in/a.png"]
    assert restore_file(item, restorer).status == "restored"


def test_inputs_are_not_overwritten(memory):
    for name in ("a.png", "b.jpg"):
        memory.pipe_file(f"/in/{name}", b"")
    listing = listed(["memory://in"], "memory:///in/")
    assert listing.items == [] and [r.status for r in listing.settled] == [FAILED, FAILED]
    memory.pipe_file("/in/b.png", b"")
    listing = listed(["memory://in/b.png", "memory://in/b.jpg"], "memory://out/", format="tif")
    assert listing.items == [] and "as that of memory://in/b" in listing.settled[0].reason


def test_urls_that_nothing_can_open():
    with pytest.raises(ListingError, match="nosuch://x/a.png cannot be opened: Protocol not known"):
        listed(["nosuch://x/a.png"], "out/")
    with pytest.raises(ListingError, match="nosuch://x/ cannot be opened"):
        listed(["a.png"], "nosuch://x/")


def test_a_store_that_refuses(memory, monkeypatch):
    memory.pipe_file("/in/a.png", b"")

    def refused(self, path, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "find", refused)
    listing = listed(["memory://in"], "out/")
    assert [r.reason for r in listing.settled] == ["memory://in cannot be listed: Access Denied"]
