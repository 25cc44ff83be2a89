"""Large tiles in pieces: what is worked out for each element of a tile at once need not fit registers."""

import triton
import triton.language as tl


@triton.jit
def halves(x):
    """The left and the right half of the columns of a block, or of a row of them."""
    if len(x.shape) == 1:
        return tl.split(tl.permute(tl.reshape(x, (2, x.shape[0] // 2)), (1, 0)))
    else:
        return tl.split(tl.permute(tl.reshape(x, (x.shape[0], 2, x.shape[1] // 2)), (0, 2, 1)))
