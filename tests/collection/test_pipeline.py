"""Files one after the other: in order, each told once, whichever way its pixels go."""

import os
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from mirnet_fast import BackendError, MIRNet
from mirnet_fast.collection import FAILED, How, Item, Record, listed, pipeline, restore_file, restore_files
from mirnet_fast.collection import job as jobs
from mirnet_fast.images import PhotoWriter, read_photo

from ..image_files import random_pixels


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(9):
        pixels = np.roll(random_pixels(np.uint8, 12, 16, 4), number)
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), pixels)
    (tmp_path / "in" / "3.png").write_bytes(b"bad")
    return tmp_path


@pytest.mark.parametrize("whole", [0, 2**22])
def test_all_are_told_in_order(folder, restorer, monkeypatch, whole):
    monkeypatch.setattr(pipeline, "WHOLE", {"cpu": whole})
    records, before = [], Record("x", None, FAILED, "x: refused")
    items = listed([str(folder / "in")], str(folder / "out")).items
    summary = restore_files(items, restorer, tell=records.append, settled=[before])
    assert [record.input for record in records] == ["x", *(item.input for item in items)]
    assert summary.failed[0].reason == "x: refused" and "3.png is not" in summary.failed[1].reason
    assert (summary.restored, summary.skipped, summary.left, summary.pixels) == (8, 0, 0, 8 * 12 * 16)
    for item in items:
        if "3.png" not in item.input:
            old, new = read_photo(item.input), read_photo(item.output)
            assert (old.rgb - new.rgb).abs().max() < 1e-6 and np.array_equal(old.alpha, new.alpha)
    alone = [restore_file(item, restorer, How(overwrite=True)) for item in items]
    for one, other in zip(alone, records[1:], strict=True):
        assert (one.status, one.reason, one.pixels) == (other.status, other.reason, other.pixels)


def test_reading_and_writing_go_on_beside_the_network(folder, restorer, monkeypatch):
    """The network waits until the next file was read and the one before is being written."""
    read, written, forward = threading.Semaphore(0), threading.Semaphore(0), MIRNet.forward
    pages, write, seen = jobs.Pages, PhotoWriter._write, []
    monkeypatch.setattr(jobs, "Pages", lambda *args: read.release() or pages(*args))
    monkeypatch.setattr(PhotoWriter, "_write", lambda self: write(self) or written.release())

    def waiting(self, x):
        seen.append(x)
        assert read.acquire(timeout=30)
        if len(seen) == 1:
            assert read.acquire(timeout=30)
        else:
            assert written.acquire(timeout=30)
        return forward(self, x)

    monkeypatch.setattr(MIRNet, "forward", waiting)
    items = [i for i in listed([str(folder / "in")], str(folder / "out")).items if "3.png" not in i.input][:4]
    read.release()  # of the last there is none after it
    assert restore_files(items, restorer).restored == 4


def test_an_error_of_the_backend_ends_the_run(folder, restorer, monkeypatch):
    def fail(self, x):
        raise BackendError("no such backend")

    monkeypatch.setattr(MIRNet, "forward", fail)
    items = listed([str(folder / "in")], str(folder / "out")).items
    with pytest.raises(BackendError):
        restore_files(items, restorer)
    with pytest.raises(BackendError):
        restore_file(items[0], restorer)
    assert not [*(folder / "out").glob("*")]


def test_what_is_there_is_left(folder, restorer):
    (folder / "out").mkdir()
    (folder / "out" / "0.png").write_bytes(b"mine")
    (folder / "out" / "1.png").mkdir()
    items = [Item(str(folder / "in" / f"{i}.png"), str(folder / "out" / f"{i}.png")) for i in range(2)]
    skipped, failed = (restore_file(item, restorer) for item in items)
    assert skipped.status == "skipped" and skipped.reason == f"{items[0].output} is there already"
    assert failed.status == "failed" and "is a folder, and the result would have that name" in failed.reason
    os.utime(folder / "out" / "0.png", (1, 1))
    assert restore_file(items[0], restorer).reason.endswith("is there already, older than its input")
    assert (folder / "out" / "0.png").read_bytes() == b"mine"
    assert restore_file(items[0], restorer, How(overwrite=True)).status == "restored"
    assert restore_file(items[1], restorer, How(overwrite=True)).status == "failed"


def test_warnings_are_of_the_file_that_they_are_about(folder, restorer, recwarn):
    exif = Image.Exif()
    exif[0x010E] = "x" * 70_000  # more than a JPEG can hold
    for name in ("a", "b"):
        picture = Image.fromarray(random_pixels(np.uint8, 9, 8, 3))
        picture.save(folder / f"{name}.png", **({"exif": exif} if name == "a" else {}))
    items = [Item(str(folder / f"{name}.png"), str(folder / f"{name}.jpg")) for name in ("a", "b")]
    records = []
    restore_files(items, restorer, tell=records.append)
    assert "bytes of EXIF don't fit a JPEG" in records[0].notes[0] and records[1].notes == ()
    assert not recwarn.list
