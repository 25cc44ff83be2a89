"""What a product of blocks is made of: how many products an instruction of the tensor core sums at a time."""

import re

from bi_compile.templates.gpu.ttgir import Operation

_TCGEN05 = r"tcgen05\.mma\.cta_group::1\.kind::(\S+) .*?, (%r\d+), %p\d+;"
_OF_THE_TILE = 0x3 << 15 | 0x3F << 17 | 0x1F << 24
"""In an instruction's descriptor: which operands lie transposed, and the numbers of columns and rows."""
_DESCRIBED = {("f16", 0x490): "bf16 k16", ("f16", 0x010): "f16 k16", ("tf32", 0x910): "tf32 k8"}
"""What the rest of it says: the types of operands and of sums, from which the number of products follows."""


def kind_of(dot: Operation) -> str:
    """How many products one instruction sums, and whether it takes them out of order."""
    a, b = (re.search(r"x(bf16|f16|f32|f64|f8\w+)", kind) for kind in dot.types[:2])
    if a is None or b is None:
        raise ValueError(f"a product of {dot.types[0]} and {dot.types[1]}")
    if dot.name == "tt.dot" and "mma" not in dot.types[-1]:
        return "1"
    bits = {"bf16": 16, "f16": 16, "f32": 32, "f64": 64}.get(a[1], 8)
    permuted = ""
    for kind in dot.types[:2]:
        width = re.search(r"kWidth = (\d+)", kind)
        if width and int(width[1]) * bits != 32:
            permuted = f" in order {width[1]}"
    imprecise = re.search(r"maxNumImpreciseAcc = (\d+)", dot.text)
    return f"{256 // bits}{permuted}" + (f" imprecise {imprecise[1]}" if bits == 8 and imprecise else "")


def instructions(ptx: str) -> tuple[str, ...]:
    """What the tensor core multiplies, and how many products one instruction sums. Raises ValueError."""
    described = re.findall(_TCGEN05, ptx)
    if len(described) != ptx.count("tcgen05.mma"):
        raise ValueError("a tcgen05.mma of another form")
    found = {_in_tensor_memory(ptx, kind, descriptor) for kind, descriptor in described}
    for k, kinds in re.findall(r"mma(?:_async)?\.sync\.aligned\S*?m\d+n\d+k(\d+)\S*?\.f32\.(\S+)", ptx):
        found.add(f"{kinds.split('.')[0]} k{k}")
    return tuple(sorted(found))


def _in_tensor_memory(ptx: str, kind: str, descriptor: str) -> str:
    """What a tcgen05.mma multiplies, by its descriptor, which has to be a constant. Raises ValueError."""
    given = set(re.findall(rf"\t{descriptor}, (.*);", ptx))
    told = {n.isdecimal() and _DESCRIBED.get((kind, int(n) & ~_OF_THE_TILE)) for n in given}
    if len(told) != 1 or not all(told):
        raise ValueError(f"tcgen05.mma of kind {kind} with the descriptors {sorted(given)}")
    return str(told.pop())
