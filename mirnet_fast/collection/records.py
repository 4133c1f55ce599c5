"""What became of each file of a collection, and of all of them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

RESTORED, SKIPPED, FAILED = "restored", "skipped", "failed"


@dataclass(frozen=True)
class Record:
    """What became of one file.

    Attributes:
        input: its path, as it was given or found.
        output: that of its result; None where it could have none.
        status: RESTORED, SKIPPED or FAILED.
        reason: why it was skipped or failed, a sentence that names the file; None of one that was restored.
        width, height: of its first page in pixels, upright; 0 where it was not read.
        pages: how many pages or frames it has; 0 where it was not read.
        pixels: of all its pages together.
        seconds: of work on it: reading, network, writing, but not waiting in between.
        noise: the standard deviation of its noise in grey levels of 255, the mean of its pages; None where
            the strength does not go by it.
        strength: how much of the network's change was made, the mean of its pages; None where none was.
        largest_difference, mean_difference: how far it is from a result without tiles, in grey levels of 255,
            by a sample of its first page; None where that is not in tiles.
        notes: what else is to be known: damage, what could not be kept.
    """

    input: str
    output: str | None
    status: str
    reason: str | None = None
    width: int = 0
    height: int = 0
    pages: int = 0
    pixels: int = 0
    seconds: float = 0.0
    noise: float | None = None
    strength: float | None = None
    largest_difference: float | None = None
    mean_difference: float | None = None
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """For one line of JSON."""
        return {"kind": "file", **dataclasses.asdict(self)}


@dataclass
class Summary:
    """What became of all files.

    Attributes:
        restored, skipped: how many.
        failed: the records of those that failed.
        pixels: of those that were restored.
        seconds: from begin to end, by the clock.
        left: how many were not begun, as the run was stopped.
        stopped: why it was, or None.
        interrupted: whether it was by KeyboardInterrupt.
    """

    restored: int = 0
    skipped: int = 0
    failed: list[Record] = field(default_factory=list)
    pixels: int = 0
    seconds: float = 0.0
    left: int = 0
    stopped: str | None = None
    interrupted: bool = False

    def add(self, record: Record) -> None:
        if record.status == RESTORED:
            self.restored += 1
            self.pixels += record.pixels
        elif record.status == SKIPPED:
            self.skipped += 1
        else:
            self.failed.append(record)

    @property
    def told(self) -> int:
        """Of how many files it is."""
        return self.restored + self.skipped + len(self.failed)

    @property
    def megapixels_a_second(self) -> float:
        return self.pixels / 1e6 / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """For one line of JSON, the last."""
        return {
            "kind": "summary",
            "restored": self.restored,
            "skipped": self.skipped,
            "failed": len(self.failed),
            "left": self.left,
            "stopped": self.stopped,
            "pixels": self.pixels,
            "seconds": round(self.seconds, 3),
            "megapixels_a_second": round(self.megapixels_a_second, 3),
        }
