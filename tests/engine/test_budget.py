"""How much memory there is and is allowed."""

import pytest

from mirnet_fast.engine import budget, store


@pytest.mark.parametrize(
    ("text", "expected"),
    [(5, 5), ("600M", 600 * 2**20), ("4G", 2**32), ("1.5 GiB", 3 * 2**29), ("2kb", 2048), ("7", 7)],
)
def test_what_a_caller_allows(text, expected):
    assert budget.parsed(text) == expected


@pytest.mark.parametrize("text", ["", "G", "4 parsecs", "-1", "4G4", "1e9", 0, -5])
def test_what_is_no_memory(text):
    with pytest.raises(ValueError, match="memory must be bytes or text"):
        budget.parsed(text)


@pytest.mark.parametrize("value", [None, 1.5, True, [4]])
def test_what_is_neither_a_number_nor_text(value):
    with pytest.raises(TypeError, match="memory must be bytes or text"):
        budget.parsed(value)


def system(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MEMINFO = "MemTotal: 900 kB\nMemAvailable: 500 kB\n"
ONE = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": MEMINFO}, 500 * 1024),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "5\n",
                "sys/fs/cgroup/a/memory.max": "3000\n",
                "sys/fs/cgroup/a/memory.current": "2000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 1\ninactive_file 700\n",
            },
            1700,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "3:cpu:/c\n2:memory:/c\n",
                f"{ONE}/memory.limit_in_bytes": "4000\n",  # seen from inside a container
                f"{ONE}/memory.usage_in_bytes": "4500\n",
            },
            0,
        ),
        (
            {
                "proc/meminfo": MEMINFO,
                "proc/self/cgroup": "2:memory:/c\n",
                f"{ONE}/c/memory.limit_in_bytes": f"{2**63 - 4096}\n",
                f"{ONE}/c/memory.usage_in_bytes": "4500\n",
            },
            500 * 1024,
        ),
    ],
    ids=["unknown", "no group", "version 2", "version 1", "no limit"],
)
def test_what_is_free(monkeypatch, tmp_path, files, expected):
    system(tmp_path, files)
    monkeypatch.setattr(budget, "_ROOT", tmp_path)
    assert budget.free() == expected


def test_a_folder_in_memory_is_told(monkeypatch, tmp_path):
    mounts = [("/", "ext4"), (str(tmp_path), "tmpfs"), (str(tmp_path / "disk"), "ext4")]
    monkeypatch.setattr(store, "_mounts", lambda: iter(mounts))
    assert store.is_in_memory(str(tmp_path)) and store.is_in_memory(str(tmp_path / "other"))
    assert not store.is_in_memory(str(tmp_path / "disk" / "folder"))
    assert not store.is_in_memory("/")


def test_the_default_folder_is_on_a_disk_if_one_is(monkeypatch):
    monkeypatch.delenv("TMPDIR", raising=False)
    monkeypatch.setattr(store.tempfile, "gettempdir", lambda: "/tmp")
    monkeypatch.setattr(store, "_mounts", lambda: iter([("/", "ext4"), ("/tmp", "tmpfs")]))
    assert store.default_folder() == "/var/tmp"
    monkeypatch.setattr(store, "_mounts", lambda: iter([("/", "ext4")]))
    assert store.default_folder() == "/tmp"
