"""Files elsewhere, by fsspec."""

import tempfile
import warnings

import cv2
import fsspec
import numpy as np
import pytest

from mirnet_fast.collection import How, ListingError, job, listed, restore_file, restore_files
from mirnet_fast.images import Limits

from ..image_files import random_pixels


@pytest.fixture
def elsewhere():
    files = fsspec.filesystem("memory")
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def png(value=0):
    return cv2.imencode(".png", random_pixels(np.uint8, 20, 24, 3) + np.uint8(value))[1].tobytes()


def pairs(listing):
    return [(item.input, item.output) for item in listing.items]


def test_urls(elsewhere, tmp_path):
    for name in ("a.png", "b/c.jpg", "b/d.txt", ".e.png", "out/f.png"):
        elsewhere.pipe(f"/in/{name}", b"")
    to = [("memory:///in/a.png", "out/a.png"), ("memory:///in/b/c.jpg", "out/b/c.jpg")]
    assert pairs(listed(["memory://in"], "out"))[:2] == to
    assert [i.output for i in listed(["memory:///in"], "memory:///in/out").items] == [
        "memory:///in/out/a.png",
        "memory:///in/out/b/c.jpg",
    ]
    assert [i.input for i in listed(["memory:///in/*/*.jpg"], "out/").items] == ["memory:///in/b/c.jpg"]
    assert pairs(listed(["memory:///in/a.png"], "memory:///x.png")) == [
        ("memory:///in/a.png", "memory:///x.png")
    ]
    assert pairs(listed(["memory:///in/a.png"], "memory:///in/b")) == [
        ("memory:///in/a.png", "memory:///in/b/a.png")
    ]
    assert pairs(listed([f"file://{tmp_path}/a.png"], "b.png")) == [(f"{tmp_path}/a.png", "b.png")]
    (record,) = listed(["memory:///in/a.png"], "memory:///in/").settled
    assert "would overwrite the input" in record.reason
    with pytest.raises(ListingError, match=r"^nosuch://x.png cannot be used: Protocol not known"):
        listed(["nosuch://x.png"], "out/")


def test_there_and_back(elsewhere, restorer, tmp_path):
    elsewhere.pipe(
        {"/in/a.png": png(), "/in/b/c.png": png(1), "/in/bad.png": b"bad", "/in/cut.png": png()[:900]}
    )
    records = []
    items = listed(["memory:///in", "memory:///missing.png"], "memory:///out").items
    summary = restore_files(items, restorer, tell=records.append)
    assert summary.restored == 2 and elsewhere.find("/out") == ["/out/a.png", "/out/b/c.png"]
    for name, value in (("a.png", 0), ("b/c.png", 1)):
        made = cv2.imdecode(np.frombuffer(elsewhere.cat(f"/out/{name}"), np.uint8), cv2.IMREAD_UNCHANGED)
        assert np.array_equal(made, random_pixels(np.uint8, 20, 24, 3) + np.uint8(value))
    reasons = [record.reason for record in summary.failed]
    assert [reason.partition(" ")[0].rstrip(":") for reason in reasons] == [
        "memory:///in/bad.png",
        "memory:///in/cut.png",
        "memory:///missing.png",
    ]
    assert (
        "is not an image" in reasons[0]
        and reasons[0].count("bad.png") == 1
        and "damaged" in reasons[1]
        and not any("tmp" in r for r in reasons)
    )
    assert restore_files(items, restorer).skipped == 2
    few = restore_files(items, restorer, How(overwrite=True, limits=Limits(bytes=10)))
    assert "memory:///in/a.png is too large" in few.failed[0].reason
    here = restore_files(listed(["memory:///in/a.png"], str(tmp_path / "here.png")).items, restorer)
    assert here.restored == 1 and (tmp_path / "here.png").exists()


def test_what_cannot_be_put_is_not_there(elsewhere, restorer, monkeypatch):
    elsewhere.pipe("/in/a.png", png())
    put = type(elsewhere).put_file

    def half(self, copy, path, **options):
        put(self, copy, path, **options)
        raise OSError(5, "connection lost")

    monkeypatch.setattr(type(elsewhere), "put_file", half)
    summary = restore_files(listed(["memory:///in"], "memory:///out").items, restorer)
    assert "connection lost" in summary.failed[0].reason and elsewhere.find("/out") == []


def test_the_folder_of_results_is_no_input_however_it_is_written(elsewhere):
    for name in ("a.png", "b/.c/d.png", "out/a.png", "outer/e.png"):
        elsewhere.pipe(f"/in/{name}", b"")
    for inside in ("memory://in/out", "memory:///in/out/"):
        found = [item.input for item in listed(["memory://in/"], inside).items]
        assert found == ["memory:///in/a.png", "memory:///in/outer/e.png"]
    assert pairs(listed(["memory://in/out"], "memory://in")) == [
        ("memory:///in/out/a.png", "memory://in/a.png")
    ]
    assert len(listed(["memory://in"], "memory://in/").settled) == 3


def test_reasons_name_urls(elsewhere, restorer, monkeypatch):
    elsewhere.pipe("/in/a.png", png())
    (item,) = listed(["memory://in/missing.png"], "memory://out/").items
    assert restore_file(item, restorer).reason == "memory://in/missing.png: No such file or directory"

    def noted(path, *rest):
        warnings.warn(f"{path} is odd", stacklevel=2)
        return pages(path, *rest)

    pages = job.Pages
    monkeypatch.setattr(job, "Pages", noted)
    (item,) = listed(["memory://in/a.png"], "memory://out/").items
    assert restore_file(item, restorer).notes == ("memory://in/a.png is odd",)


def test_a_store_that_refuses(elsewhere, monkeypatch):
    elsewhere.pipe("/in/a.png", b"")

    def refused(self, path, **options):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(elsewhere), "find", refused)
    listing = listed(["memory://in", "memory://in/a.png"], "out/")
    assert [record.reason for record in listing.settled] == ["memory://in cannot be listed: Access Denied"]
    assert pairs(listing) == [("memory://in/a.png", "out/a.png")]


def test_nothing_temporary_is_left(elsewhere, restorer, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    elsewhere.pipe({"/in/a.png": png(), "/in/bad.png": b"bad"})
    summary = restore_files(listed(["memory://in"], "memory://out").items, restorer)
    assert (summary.restored, len(summary.failed)) == (1, 1) and [*tmp_path.iterdir()] == []
