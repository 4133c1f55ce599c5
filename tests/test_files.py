"""Files that are written whole or not at all."""

import os
import signal
import subprocess
import sys

import pytest

from mirnet_fast._files import remove_halves, replaced


def test_new_file_has_the_usual_mode(tmp_path):
    os.umask(mask := os.umask(0o022))
    with replaced(tmp_path / "a.txt") as new:
        assert new.suffix == ".txt" and new.parent == tmp_path
        new.write_text("all")
    assert (tmp_path / "a.txt").read_text() == "all"
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~mask
    assert os.listdir(tmp_path) == ["a.txt"]


def test_mode_is_kept(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "a").chmod(0o640)
    with replaced(tmp_path / "a") as new:
        new.write_text("all")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_after_an_error_the_old_one_is_there(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), replaced(tmp_path / "a") as new:
        new.write_text("half")
        raise error
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_killed(tmp_path):
    (tmp_path / "a").write_text("old")
    code = "import os, sys; from mirnet_fast._files import replaced\n"
    code += "with replaced(sys.argv[1]) as new: new.write_text('half'); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a"], check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "old"
    (tmp_path / ".new-mine.txt").write_text("")
    remove_halves(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".new-mine.txt", "a"]


def test_a_writer_with_a_mode_of_its_own(tmp_path):
    # As that of safetensors, which makes a file of its own and renames it.
    for _ in range(2):
        with replaced(tmp_path / "a") as new:
            (tmp_path / "other").write_text("all")
            (tmp_path / "other").chmod(0o600)
            (tmp_path / "other").rename(new)
        (tmp_path / "usual").touch()
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_is_replaced_not_its_target(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("link", "broken"):
        with replaced(tmp_path / name) as new:
            new.write_text("new")
        assert (tmp_path / name).read_text() == "new" and not (tmp_path / name).is_symlink()
    assert (tmp_path / "a").read_text() == "old"
    assert not (tmp_path / "nowhere").exists()


def test_what_is_no_file_is_written_to(tmp_path):
    with replaced("/dev/null") as new:
        assert str(new) == "/dev/null"
    with pytest.raises(IsADirectoryError), replaced(tmp_path):
        pass


def test_longest_name(tmp_path):
    name = "a" * 251 + ".txt"
    with replaced(tmp_path / name) as new:
        new.write_text("all")
    assert (tmp_path / name).read_text() == "all"
