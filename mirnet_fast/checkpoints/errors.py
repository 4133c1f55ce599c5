"""What is told of a checkpoint that does not do."""

from collections.abc import Sequence

NAMES_SHOWN = 10


class CheckpointError(ValueError):
    """A checkpoint cannot be read, does not fit the model, or cannot be written."""


def listing(kind: str, names: Sequence[object]) -> list[str]:
    """[] or [one line]: how many, and the first of them."""
    if not names:
        return []
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return [f"{len(names)} {kind}: {', '.join(map(str, names[:NAMES_SHOWN]))}{more}"]
