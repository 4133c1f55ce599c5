"""What may end a training, in a sentence."""

import contextlib
from collections.abc import Generator
from pathlib import Path

import torch
from safetensors import SafetensorError


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what is safe."""


@contextlib.contextmanager
def can_be_written(path: Path, kept: str = "") -> Generator[None]:
    """Inside, failing to write is a TrainingError that names the path and ends with `kept`."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch.save's is a RuntimeError
        if _tells_of_a_worker(error):
            raise
        raise TrainingError(f"{path} cannot be written: {last_line(error)}{kept}") from error


@contextlib.contextmanager
def failures_told(what: str) -> Generator[None]:
    """Inside, too little memory and the death of a worker are TrainingErrors."""
    try:
        yield
    except TrainingError:
        raise
    except (ConnectionError, EOFError, MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise TrainingError(
                f"the memory is not enough for {what}; a smaller patch or batch needs less, and so do a "
                f"larger accumulate and checkpoint_blocks: true ({last_line(error)})"
            ) from error
        if isinstance(error, ConnectionError | EOFError) or _tells_of_a_worker(error):
            raise TrainingError(
                f"a process that reads photos ended, perhaps for want of memory ({last_line(error)}); "
                "the same again goes on from the last checkpoint"
            ) from error
        raise


def _tells_of_a_worker(error):
    """Whether it is PyTorch's of a worker's death, which a signal raises wherever the training is then."""
    return "DataLoader worker" in str(error)


def last_line(error: BaseException) -> str:
    """The last line of a message: what a worker sends begins with its traceback."""
    return str(error).strip().rpartition("\n")[2]
