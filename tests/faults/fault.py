"""What a planted fault is."""

from dataclasses import dataclass


@dataclass
class Fault:
    """In a file, which the repository has, `bad` stands for `good`, which stands there once."""

    name: str
    what: str
    file: str
    good: str
    bad: str
    aims_at: str  # arguments of pytest
