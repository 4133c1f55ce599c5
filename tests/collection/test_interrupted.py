"""Runs that end early, by kill -9, Ctrl-C or a full disk: nothing is lost, half written or done twice."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from mirnet_fast import MIRNet
from mirnet_fast._files import replaced
from mirnet_fast.collection import How, listed, pipeline, restore_files
from mirnet_fast.images import read_photo

from .. import cases
from . import common


def photos(folder, count, side=96):
    """Files of `count` photos, which take some time to write: {name: pixels}."""
    folder.mkdir()
    rng, made = np.random.default_rng(0), {}
    for number in range(count):
        made[f"{number:03}.png"] = rng.integers(0, 256, (side, side, 3), np.uint8)
    for name, pixels in made.items():
        cv2.imwrite(str(folder / name), pixels)
    return made


def check_whole(out, made):
    """That all files which have a name are as they should be; {name: (inode, time)}."""
    seen = {}
    for path in out.iterdir() if out.exists() else ():
        if not path.name.startswith(".new-"):
            assert np.array_equal(cv2.imread(str(path)), made[path.name]), path
            seen[path.name] = path.stat().st_ino, path.stat().st_mtime_ns
    return seen


@pytest.mark.parametrize("times", cases.first_of([3, 10]))
def test_killed_at_any_moment(tmp_path, times):
    made, out = photos(tmp_path / "in", 60), tmp_path / "out"
    arguments = ["restore", tmp_path / "in", out, "--weights", common.identity(tmp_path), "--device", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.collection.killed", str(times), *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=common.ROOT,
        env=common.environment(),
    )
    written, halves, numbers = {}, 0, []
    for _ in range(times):
        assert json.loads(process.stdout.readline()) == {"killed": True}
        after = check_whole(out, made)
        assert written.items() <= after.items()  # nothing was done anew
        written = after
        halves += len([*out.glob(".new-*")])
        numbers.append(len(written))
        process.stdin.write(b"\n")
        process.stdin.flush()
    assert json.loads(process.stdout.readline()) == {"status": 0}
    assert process.wait() == 0
    after = check_whole(out, made)
    assert written.items() <= after.items() and after.keys() == made.keys()
    assert [*out.glob(".new-*")] == []
    print("killed after", numbers, "files;", halves, "half written")


@pytest.mark.parametrize("slow", ["network", "writer"])
def test_ctrl_c(tmp_path, restorer, monkeypatch, slow):
    """What is with the network is dropped, what is being written is finished."""
    monkeypatch.setattr(pipeline, "WHOLE", {"cpu": 2**22} if slow == "writer" else {"cpu": 0})
    made, out = photos(tmp_path / "in", 12, side=16), tmp_path / "out"
    forward, seen = MIRNet.forward, []

    def interrupted(self, x):
        seen.append(x)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return forward(self, x)

    monkeypatch.setattr(MIRNet, "forward", interrupted)
    if slow == "writer":
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda file: time.sleep(0.2) or fsync(file))
    records = []
    summary = restore_files(listed([str(tmp_path / "in")], str(out)).items, restorer, tell=records.append)
    assert summary.interrupted and (summary.restored, summary.left) == (2, 10)
    assert len(records) == 2 and check_whole(out, made).keys() == {"000.png", "001.png"}
    assert [*out.glob(".new-*")] == []
    again = restore_files(listed([str(tmp_path / "in")], str(out)).items, restorer)
    assert (again.skipped, again.restored) == (2, 10) and len(seen) == 13
    assert check_whole(out, made).keys() == made.keys()


@cases.exhaustive
def test_ctrl_c_of_a_terminal(tmp_path):
    made, out = photos(tmp_path / "in", 60), tmp_path / "out"
    arguments = ["restore", tmp_path / "in", out, "--weights", common.identity(tmp_path)]
    process = subprocess.Popen(common.command(*arguments), stdout=subprocess.PIPE, env=common.environment())
    first = process.stdout.readline()
    assert b"000.png -> " in first
    process.send_signal(signal.SIGINT)
    rest = process.communicate()[0].decode().splitlines()
    assert process.returncode == 130 and rest[-1].startswith("interrupted; restored ")
    written = check_whole(out, made)
    assert 0 < len(written) < 60 and f"restored {len(written)} of 60 images" in rest[-1]
    assert f"{60 - len(written)} left for another run" in rest[-1]
    assert [*out.glob(".new-*")] == []


@cases.exhaustive
def test_a_second_ctrl_c_ends_at_once(tmp_path):
    photos(tmp_path / "in", 3, side=16)
    script = "import os, sys, time\nfsync = os.fsync\n"
    script += "os.fsync = lambda file: print('writing', flush=True) or time.sleep(100)\n"
    script += "from mirnet_fast.cli import main\nmain(sys.argv[1:])"
    arguments = ["restore", tmp_path / "in", tmp_path / "out", "--weights", common.identity(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, env=common.environment()
    )
    assert process.stdout.readline() == b"writing\n"
    for _ in range(2):
        time.sleep(1)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    assert not [*(tmp_path / "out").glob("[!.]*")]


def test_a_full_disk_ends_the_run(tmp_path, restorer, monkeypatch):
    made, out = photos(tmp_path / "in", 30, side=16), tmp_path / "out"
    fsync, written = os.fsync, []

    def full(file):
        if len(written) >= 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(file)
        return fsync(file)

    monkeypatch.setattr(os, "fsync", full)
    items, records = listed([str(tmp_path / "in")], str(out)).items, []
    summary = restore_files(items, restorer, tell=records.append)
    assert summary.stopped == "no space is left for results" and not summary.interrupted
    assert 3 <= summary.restored <= 6 and summary.failed and summary.left
    assert all("was not written: No space left on device" in record.reason for record in summary.failed)
    there = {os.path.basename(record.input) for record in records if record.status == "restored"}
    assert check_whole(out, made).keys() == there and len(there) == summary.restored
    assert [*out.glob(".new-*")] == []
    monkeypatch.setattr(os, "fsync", fsync)
    assert restore_files(items, restorer).restored == 30 - len(there)
    assert check_whole(out, made).keys() == made.keys()


@cases.exhaustive
def test_a_disk_that_is_full(tmp_path):
    """A real one, of 1 MiB, in a namespace of its own."""
    made, disk = photos(tmp_path / "in", 60), tmp_path / "disk"
    disk.mkdir()
    arguments = ["restore", tmp_path / "in", disk / "out", "--weights", common.identity(tmp_path)]
    script = f'mount -t tmpfs -o size=1m tmpfs {disk} || exit 77; "$@"; echo $? > {tmp_path}/status; '
    script += f"mkdir {tmp_path}/kept; cp -a {disk}/out/. {tmp_path}/kept"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, "sh", *common.command(*arguments)],
        capture_output=True,
        env=common.environment(),
    )
    if done.returncode == 77 or b"unshare" in done.stderr:
        pytest.skip("no file system can be mounted here")
    assert (tmp_path / "status").read_text() == "1\n"
    written = check_whole(tmp_path / "kept", made)
    assert 20 < len(written) < 40 and [*(tmp_path / "kept").glob(".new-*")] == []
    assert b"was not written: No space left on device" in done.stderr
    assert b"\nno space is left for results; restored %d of 60 images" % len(written) in done.stdout


def test_what_others_are_at_is_left_alone(tmp_path, restorer):
    photos(tmp_path / "in", 1, side=16)
    out = tmp_path / "out"
    out.mkdir()
    (out / ".new-01234567.png").write_bytes(b"half")
    with replaced(out / "other.png") as new:
        restore_files(listed([str(tmp_path / "in")], str(out)).items, restorer)
        assert sorted(os.listdir(out)) == sorted([new.name, "000.png"])
        new.write_bytes(b"whole")
    assert (out / "other.png").read_bytes() == b"whole"


def test_two_runs_side_by_side(tmp_path, restorer):
    made, out = photos(tmp_path / "in", 4, side=16), tmp_path / "out"
    items = listed([str(tmp_path / "in")], str(out)).items
    other = []

    def tell(record):
        if not other:
            other.append(restore_files(items, restorer))

    assert restore_files(items, restorer, How(), tell).failed == [] and other[0].failed == []
    assert check_whole(out, made).keys() == made.keys()
    assert read_photo(out / "000.png").damage is None
