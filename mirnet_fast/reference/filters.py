"""The blur-pool filter and its padding (Zhang, ICML 2019)."""

import torch

PADDING_MODES = {"reflect": "reflect", "replicate": "replicate", "zero": "constant"}
PADDING_ALIASES = {"refl": "reflect", "repl": "replicate"}

BINOMIAL = {
    1: (1.0,),
    2: (1.0, 1.0),
    3: (1.0, 2.0, 1.0),
    4: (1.0, 3.0, 3.0, 1.0),
    5: (1.0, 4.0, 6.0, 4.0, 1.0),
    6: (1.0, 5.0, 10.0, 10.0, 5.0, 1.0),
    7: (1.0, 6.0, 15.0, 20.0, 15.0, 6.0, 1.0),
}


def binomial_filter(
    filt_size: int, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """The (filt_size, filt_size) binomial filter, its values summing to 1.

    Every value is exact in float16 and bfloat16: a small integer over a power of two.
    """
    taps = torch.tensor(BINOMIAL[filt_size], dtype=dtype, device=device)
    square = taps[:, None] * taps[None, :]
    return square / 4 ** (filt_size - 1)


def pad_amounts(filt_size: int, pad_off: int = 0) -> tuple[int, int]:
    """(before, after): the padding of one axis."""
    return (filt_size - 1) // 2 + pad_off, filt_size // 2 + pad_off
