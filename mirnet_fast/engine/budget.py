"""How much memory there is, and how much a caller allows."""

import contextlib
import re
from pathlib import Path

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_ROOT = Path("/")


def parsed(memory: int | str) -> int:
    """Bytes of what a caller gives: a number, or text as "600M", "4G" or "1.5 GB"; K is 1024.

    Raises:
        TypeError: it is neither int nor str.
        ValueError: it is not above 0, or text of another form.
    """
    expected = 'memory must be bytes or text such as "4G" or "600M"'
    if isinstance(memory, bool) or not isinstance(memory, (int, str)):
        raise TypeError(f"{expected}; got {type(memory).__name__}")
    if isinstance(memory, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(?:i?B)?\s*", memory, re.IGNORECASE)
        if found is None:
            raise ValueError(f"{expected}; got {memory!r}")
        memory = int(float(found[1]) * _UNITS[found[2].upper()])
    if memory <= 0:
        raise ValueError(f"{expected}, above 0; got {memory}")
    return memory


def free() -> int | None:
    """Bytes of memory that this process may still take: what the system has, and its containers allow.

    None where the system does not tell.
    """
    root, found = _ROOT, []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = (root / "proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(1024 * int(line.split()[1]))
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                found += _left(root / "sys/fs/cgroup", path, "memory.max", "memory.current", "inactive_file")
            elif "memory" in controllers.split(","):
                names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
                found += _left(root / "sys/fs/cgroup/memory", path, *names)
    return max(min(found), 0) if found else None


def _left(top, path, limit, usage, reclaimed):
    """What each group from `path` up to the top leaves; in a container the top is the only one to be seen."""
    group = top / path.lstrip("/")
    for folder in (group, *group.parents):
        with contextlib.suppress(OSError, ValueError):
            most = int((folder / limit).read_text())  # "max" is none
            taken = int((folder / usage).read_text())
            with contextlib.suppress(OSError, ValueError):
                # Cached files count as usage, and go when memory is wanted.
                lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
                taken -= next((int(count) for name, count in lines if name == reclaimed), 0)
            if most < 2**60:  # version 1 has a number for none
                yield most - taken
        if folder == top:
            return
