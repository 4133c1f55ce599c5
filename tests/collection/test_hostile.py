"""A hostile folder: every good file is restored, every bad one is named."""

import os

import numpy as np
import pytest

from mirnet_fast.images import Pages

from .. import cases
from . import common, hostile


@pytest.mark.parametrize("count", cases.first_of([70, 200]))
def test_a_hostile_folder(tmp_path, count):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    good, bad = hostile.fill(folder, count)
    (folder / "up").symlink_to("..")
    assert len(good) > 20 and len(good) + len(bad) == count
    arguments = ["restore", folder, out, "--weights", common.identity(tmp_path)]
    arguments += ["--limit-pixels", hostile.TOO_LARGE]
    status, rows, told = common.in_process(*arguments)
    assert status == 1
    *files, summary = rows
    by_name = {os.path.relpath(os.fsencode(row["input"]), os.fsencode(folder)): row for row in files}
    assert len(files) == len(by_name) == count
    assert {name for name, row in by_name.items() if row["status"] == "restored"} == good
    assert {name for name, row in by_name.items() if row["status"] == "failed"} == {*bad}
    for name, wrong in bad.items():
        assert wrong in by_name[name]["reason"], (name, by_name[name]["reason"])
    assert (summary["restored"], summary["failed"], summary["skipped"]) == (len(good), len(bad), 0)
    assert summary["pixels"] == sum(row["pixels"] for row in files if row["status"] == "restored")

    assert found_below(out) == good
    for name in good:
        check_same(folder, out, os.fsdecode(name))
    lines = told.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == len(bad)
    assert [line for line in lines if "links to folders are not followed" in line]
    assert all(line.isprintable() for line in lines)

    if count < 200:
        return
    before = {name: os.stat(os.path.join(os.fsencode(out), name)) for name in good}
    status, (*files, summary), _ = common.in_process(*arguments)
    assert status == 1
    assert (summary["restored"], summary["failed"], summary["skipped"]) == (0, len(bad), len(good))
    for name, stat in before.items():
        after = os.stat(os.path.join(os.fsencode(out), name))
        assert (after.st_ino, after.st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns)


def found_below(folder):
    return {
        os.path.relpath(os.path.join(place, name), os.fsencode(folder))
        for place, _, names in os.walk(os.fsencode(folder))
        for name in names
    }


def check_same(folder, out, name):
    """That a result has the pixels of its input, or nearly so where it is written with losses."""
    lossy = name.lower().endswith((".jpg", ".jpeg", ".gif"))
    with Pages(folder / name) as before, Pages(out / name) as after:
        assert len(before) == len(after)
        for old, new in zip(before, after, strict=True):
            old, new = (page.rows(0, page.height).numpy() for page in (old, new))
            assert old.shape == new.shape
            assert np.abs(old - new).mean() < (0.03 if lossy else 1e-6), name
