"""What devices can do: by their makers' data sheets, or measured here."""

from dataclasses import dataclass

import torch

from .. import backends, measure

# Of a data sheet's figures, what a large product and a large copy reach: assumed of every GPU.
PRODUCTS_REACH, COPIES_REACH = 0.8, 0.9
# Seconds from one small kernel of a CUDA graph to the next: assumed of every GPU.
LAUNCH = 1.5e-6

# Per GPU: TFLOP/s of dense products in half precision with sums in float32, the same in TF32, GB/s of
# memory, multiprocessors. Where a data sheet has them with sparsity alone, half of that.
# H200, H100 (SXM), A100 (SXM, 80 GB), L40S: NVIDIA's data sheets of these names; the multiprocessors:
# NVIDIA's white papers of their architectures. RTX 4090: the white paper "NVIDIA Ada GPU Architecture".
_DATA_SHEETS = {
    "H200": (989.5, 494.5, 4800, 132),
    "H100": (989.5, 494.5, 3350, 132),
    "A100": (312, 156, 2039, 108),
    "L40S": (362, 183, 864, 142),
    "RTX 4090": (165.2, 82.6, 1008, 128),
}
GPUS = (*_DATA_SHEETS,)


@dataclass(frozen=True)
class Device:
    """What a device reaches in one dtype, at best.

    Attributes:
        name: for reading.
        rate: FLOP/s of a large bare matrix product.
        bandwidth: bytes/s of a large copy, what is read and what is written both counted.
        launch: seconds from one kernel to the next, if they had nothing to do.
        processors: multiprocessors of a GPU, 0 for a CPU.
    """

    name: str
    rate: float
    bandwidth: float
    launch: float
    processors: int = 0

    def floor(self, flops: float, nbytes: float) -> float:
        """Seconds for so many FLOPs and bytes, whichever takes longer: the roof, as a time.

        Williams, Waterman and Patterson, "Roofline", Communications of the ACM 52 (4), 2009.
        """
        return max(flops / self.rate, nbytes / self.bandwidth)


def published(name: str, dtype: torch.dtype) -> Device:
    """A GPU that need not be here, as its data sheet has it, in so far as programs reach that (assumed).

    Args:
        name: one of GPUS.
        dtype: float16, bfloat16, or float32, whose products are in TF32, as cuDNN's convolutions.

    Raises:
        ValueError: there is no figure for this GPU or dtype.
    """
    if name not in _DATA_SHEETS:
        raise ValueError(f"there are no figures for {name!r}; there are for {', '.join(GPUS)}")
    half, tf32, bandwidth, processors = _DATA_SHEETS[name]
    rates = {torch.float16: half, torch.bfloat16: half, torch.float32: tf32}
    if dtype not in rates:
        raise ValueError(f"there are no figures for {dtype}; there are for {', '.join(map(str, rates))}")
    rate = PRODUCTS_REACH * 1e12 * rates[dtype]
    return Device(name, rate, COPIES_REACH * 1e9 * bandwidth, LAUNCH, processors)


def measured(device: torch.device, dtype: torch.dtype) -> Device:
    """A device that is here: a large product and a large copy, the best of some, and the smallest kernel.

    For a CPU that lacks arithmetic in `dtype`, and for float16, the products are in float32: what is only
    stored in it can be computed so.
    """
    on_gpu = device.type == "cuda"
    computes = on_gpu or (dtype != torch.float16 and backends.cpu_computes(dtype))
    return Device(
        torch.cuda.get_device_name(device) if on_gpu else str(measure.machine()["cpu"]),
        _best(measure.product_rate, 8192 if on_gpu else 1024, device, dtype if computes else torch.float32),
        _best(measure.copy_bandwidth, 2**28 if on_gpu else 2**26, device),  # beyond any cache
        measure.launch_seconds(device),
        torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else 0,
    )


def _best(rate, *args):
    """What others on the machine take away is not the device's lack."""
    return max(rate(*args, rounds=1) for _ in range(7))
