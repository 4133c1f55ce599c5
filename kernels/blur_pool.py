"""blur_pool: every output pixel is the weighted sum of the few input pixels its two tables name.

Fuses padding, filter and stride (`_resample.py`); the backward is the same kernel on the transposed
tables. Floor: 1 + 1/4 maps.
"""

from ._layouts import laid_out_like, map_in
from ._resample import resample
from ._taps import blur_table


def blur_pool(x, filt_size, pad_type, stride, pad_off):
    """As mirnet_fast.ops.blur_pool."""
    tables = [blur_table(size, filt_size, pad_type, stride, pad_off, x.device) for size in x.shape[2:]]
    return laid_out_like(resample(map_in(x), *tables), x)


def blur_pool_backward(grad, x, filt_size, pad_type, stride, pad_off):
    """[gradient of x]."""
    tables = [blur_table(size, filt_size, pad_type, stride, pad_off, x.device, True) for size in x.shape[2:]]
    return [laid_out_like(resample(map_in(grad), *tables), x)]
