"""The canonical summation trees: every constant that decides the bits of a result.

A result is one fixed expression tree over its inputs. The shape of that tree follows from the reduced
length, the feature sizes and the dtype alone. Tiles, vector lengths, thread counts and layouts are free
because they do not enter any tree. Changing a constant here changes bits that users rely on: it needs a
CHANGELOG entry and new golden hashes. `docs/numerics.md` tells the whole story.

This module imports nothing, so that every part, the C++ build included (through `c_macros`), can read it.
"""

CONTRACTION_CHUNK = 256
"""K elements summed by one chain of fused multiply-adds, starting at +0, in index order.

The chunk sums are the leaves of a balanced binary tree (see `tree_levels`). 256 keeps a packed panel of
32 columns in a 32 KiB first-level cache, and makes every tensor-parallel shard whose K is 256 times a power
of two a subtree.
"""

CONTRACTION_GPU_CHUNK = 4096
"""bf16 and fp16 K elements summed by one chain of the tensor core on CUDA devices.

A chain starts at +0 and takes in fused sums of 16 products at a time, in index order. The sums of more than
one chunk are added in index order, from +0, in fp32. The tree follows from K and the dtype alone, never from
M or N: either may hold the batch. 4096 leaves the hidden size of many models one chain, at which tiles are
free and large products need no second accumulator, and gives the long rows of feed-forward layers pieces to
sum in parallel. fp64 has chains of CONTRACTION_CHUNK fused multiply-adds, added the same way.
"""

CONTRACTION_GPU_FP32_CHUNK = 512
"""The same for fp32, whose chains are slow: more, shorter chunks keep products of few rows in parallel."""

CONTRACTION_GPU_FP32_BLOCK = 32
"""fp32 K elements whose products the tensor core sums on their own before they are added to the chain.

Each operand is x = high + low, high the nearest tf32 and low cut to tf32. From +0 the block sums low x high,
then high x low, then high x high, 8 products at a time; then it is added to the sum so far, rounded to
nearest. So the tensor core's truncation ends with the block and does not grow with K.
"""

BF16_ORDERS = ("tiles", "pairs")
"""What a chunk of a bf16 contraction or attention sums, in which order; their `contract.py` spell both.

"tiles" is the order of the AMX instruction TDPBF16PS, about ten times as fast as anything else on machines
that have it; "pairs" is that of VDPBF16PS, and of every machine without AMX. A process has one of them: its
machine's, or the one that the environment variable BI_COMPILE_BF16_ORDER names. Every machine computes both.
"""

REDUCTION_LANES = 32
"""Partial sums kept side by side by a row reduction: element i of a chunk belongs to lane i mod 32.

32 fp32 lanes are two AVX-512 or four AVX2 registers: enough independent chains to hide the latency of an
add. Lanes are folded in halves: lane j takes in lane j+16, then j+8, j+4, j+2, j+1.
"""

REDUCTION_CHUNK = 1024
"""Elements of one leaf of a row reduction: 32 steps of each lane. Leaves form a balanced tree."""

ATTENTION_KV_BLOCK = 64
"""Keys whose scores share one running maximum update, counted from the first key that the row may see."""

ATTENTION_KV_SPLIT = 1024
"""Keys of one split. A split has its own maximum, sum and accumulator; splits are merged in order."""

ATTENTION_GPU_KV_SPLIT = 512
"""The same on CUDA devices, where splits are also what a single query is shared out by."""

ATTENTION_GPU_FIRST_SPLITS = 4
"""This many first splits there have half the length: short contexts are shared out as well."""


def tree_levels(leaves: int) -> int:
    """Depth of the balanced tree over `leaves` chunk sums anchored at chunk 0.

    The tree is the perfect binary tree of 2**levels leaves in which absent leaves on the right are the
    identity: a node whose right half is absent is its left half. Appending zeros to a sum therefore changes
    no bit, and a walk in sequence with one slot a level (a binary counter) builds the same tree as a
    parallel split.
    """
    return max(0, leaves - 1).bit_length()


def contraction_gpu_chunk(bytes_of_element: int) -> int:
    """K elements of one chunk on CUDA devices for elements of 2 or 4 bytes."""
    return CONTRACTION_GPU_CHUNK if bytes_of_element == 2 else CONTRACTION_GPU_FP32_CHUNK


def c_macros() -> dict[str, int]:
    """The constants as preprocessor definitions for the C++ kernels, prefixed with BI_."""
    names = (
        "CONTRACTION_CHUNK",
        "REDUCTION_LANES",
        "REDUCTION_CHUNK",
        "ATTENTION_KV_BLOCK",
        "ATTENTION_KV_SPLIT",
    )
    return {f"BI_{name}": globals()[name] for name in names}
