"""Small kernels, most of which sum in another order than a plain product does.

test_controls_compiled imports this in a process of its own: other tests' interpreter replaces kernels.
"""

import re
from types import SimpleNamespace

import torch
import triton
import triton.language as tl

from bi_compile.templates.contraction import gpu_certificates
from bi_compile.templates.contraction.gpu_configs import Config
from bi_compile.templates.gpu import ahead
from bi_compile.templates.gpu.certificate import certificate


def controls(capability: int) -> dict[str, str]:
    """Their certificates."""
    found = {}
    dots = {
        "plain": ("bf16", "ieee", 64, 64, False),
        "other tile": ("bf16", "ieee", 16, 32, False),
        "large tile": ("bf16", "ieee", 128, 32, False),
        "split": ("bf16", "ieee", 64, 64, True),
        "tf32": ("fp32", "tf32", 64, 64, False),
        "tf32x3 of 16": ("fp32", "tf32x3", 64, 16, False),
        "tf32x3 of 32": ("fp32", "tf32x3", 64, 32, False),
    }
    for name, (dtype, precision, rows, k, split) in dots.items():
        found[name] = _dot(capability, _product, dtype, rows, k, PRECISION=precision, SPLIT=split)
    swapped = {"PRECISION": "tf32x3", "SPLIT": False, "SWAP": True}
    found["tf32x3 swapped"] = _dot(capability, _product, "fp32", 64, 32, **swapped)
    found["split that is folded"] = _dot(capability, _unlike, "bf16", 64, 64, FORM="added")
    found["tf32 of widened bf16"] = _dot(capability, _widened, "bf16", 16, 32)
    for form in ("two sums", "begun", "each twice", "not cleared"):
        found[form] = _dot(capability, _unlike, "bf16", 64, 64, FORM=form)
    for k in (32, 64):
        found[f"added in blocks of {k}"] = _dot(capability, _unlike, "bf16", 64, k, FORM="blocks")
    for name, kernel in (("sum", _row_sum), ("tree", _row_tree)):
        for warps in (4, 8):
            compiled = ahead.compile_kernel(
                kernel, capability, {"x": "*fp32", "out": "*fp32"}, {"N": 2048}, num_warps=warps, num_stages=1
            )
            found[f"{name} of {warps} warps"] = str(certificate(compiled))
    return found


def altered() -> dict[str, str]:
    """What is told of shipped kernels with one line that is not the compiler's.

    Two sum in Blackwell's tensor memory, and of one a part of the sum waits in device memory.
    """
    found = {}
    kernels = {
        "bfloat16": (Config(64, 64, 128, 4, 6, descriptors=True), 100, "one", _ALTERED),
        "float32": (Config(64, 64, 32, 4, 4, descriptors=True), 100, "one", _ALTERED_FP32),
        "waiting": (Config(128, 256, 64, 8, 4, descriptors=True), 90, "sequence", _ALTERED_WAITING),
    }
    for name, (config, capability, form, changes) in kernels.items():
        dtype = torch.float32 if name == "float32" else torch.bfloat16
        compiled = gpu_certificates.compile_product(config, dtype, capability, form)
        text = re.sub(r" loc\(#\w+\)", "", compiled.asm["ttgir"])
        for told, change in {"nothing": ("", ""), **changes}.items():
            changed = re.sub(*change, text, count=1)
            assert changed != text or told == "nothing", told
            asm = {**compiled.asm, "ttgir": changed}
            try:
                order = str(certificate(SimpleNamespace(asm=asm, metadata=compiled.metadata)))
            except ValueError as error:
                order = f"unknown: {error}"
            found[f"{name}: {told}"] = order
    return found


# Each: what is replaced, and by what.
_IN_THE_LOOP = r"(tc_gen5_mma .*), %true, %true, "
_BEFORE_IT = r"(tc_gen5_mma .*), %false, (%\w+), "
_ALTERED = {
    "cleared in every step": (_IN_THE_LOOP, r"\1, %false, %true, "),
    "left out in some steps": (_IN_THE_LOOP, r"\1, %true, %false, "),
    "added twice": (rf"(.*{_IN_THE_LOOP}.*\n)", r"\1\1"),
    "first step always": (_BEFORE_IT, r"\1, %false, %true, "),
    "first step in other cases": (r"(cmpi sgt, %K, )%c0_i32", r"\1%c128_i32"),
    "first step of other operands": (r"tc_gen5_mma (%x\w*), (%y\w*), ", r"tc_gen5_mma \1, \1, "),
    "begun with something else": (r"(%cst = arith.constant dense<)0", r"\g<1>1"),
    "begun in some cases": (r"(tmem_store .*), %true ", r"\1, %false "),
    "never begun": (r".*tmem_store .*\n", ""),
    "a loop that leaves two steps": (r"subi %K, %c128_i32", "subi %K, %c256_i32"),
    "a loop that leaves none": (r"(scf\.for .* to )%\w+( step %c128_i32)", r"\1%K\2"),
    "in tokens": (r"(tmem_store %cst, %total)", r"\1[%true]"),
}
_ALTERED_FP32 = {
    "another sum is continued": (r"(tc_gen5_mma .*), %false, %true, ", r"\1, %true, %true, "),
    "a sum is cleared": (_IN_THE_LOOP, r"\1, %false, %true, "),
    "the last step on another condition": (r"(scf\.if )%\w+( -> )", r"\1%true\2"),
    "the last step on its own": (r"(addf %\w+), %\w+#0", r"\1, %cst"),
    "the last step left out": (r"(yield )%\w+( .*\n.*else.*\n.*yield )(\S+)", r"\1\3\2\3"),
    "a loop without a last step": (r"(else.*\n.*yield )%\S+", r"\1%cst"),
}
_KEPT = r"( : tensor<8x1024x!tt\.ptr<f32>.*)"
_ALTERED_WAITING = {
    "loaded from elsewhere": (
        rf"(%\w+ = tt\.load )(%\w+){_KEPT}",
        r"%far = tt.addptr \2, %N : tensor<!tt.ptr<f32>>, tensor<i32>\n\1%far\3",
    ),
    "loaded in part": (rf"(tt\.load %\w+){_KEPT}", r"\1, %N\2"),
    "stored in part": (rf"(tt\.store %\w+, %\w+){_KEPT}", r"\1, %N\2"),
    "never begun": (rf".*tt\.store %\w+, %\w+{_KEPT}\n", ""),
    "never stored": (rf"(tt\.load %\w+{_KEPT}\n(?:.*\n)*?).*tt\.store %\w+, %\w+{_KEPT}\n", r"\1"),
}


def _dot(capability: int, kernel, dtype: str, rows: int, k: int, **constants) -> str:
    types = {"a": f"*{dtype}", "b": f"*{dtype}", "out": "*fp32", "K": "i32"}
    constants = {"ROWS": rows, "BLOCK": k, "SWAP": False, **constants}
    constants = {n: v for n, v in constants.items() if n in kernel.arg_names}
    compiled = ahead.compile_kernel(kernel, capability, types, constants, num_warps=4, num_stages=3)
    try:
        return str(certificate(compiled))
    except ValueError as error:
        return f"unknown: {error}"


@triton.jit
def _product(
    a, b, out, K, ROWS: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr, SPLIT: tl.constexpr,
    SWAP: tl.constexpr,
):  # fmt: skip
    rows = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    whole = tl.zeros((ROWS, ROWS), tl.float32)
    if SPLIT:
        for begin in range(0, K, 512):
            total = tl.zeros((ROWS, ROWS), tl.float32)
            for start in range(begin, tl.minimum(K, begin + 512), BLOCK):
                x = tl.load(a + rows[:, None] * K + (start + k)[None, :])
                y = tl.load(b + rows[None, :] * K + (start + k)[:, None])
                total = tl.dot(x, y, total, input_precision=PRECISION)
            whole += total
    else:
        for start in range(0, K, BLOCK):
            x = tl.load(a + rows[:, None] * K + (start + k)[None, :])
            y = tl.load(b + rows[None, :] * K + (start + k)[:, None])
            if SWAP:
                whole = tl.dot(y.T, x.T, whole, input_precision=PRECISION)
            else:
                whole = tl.dot(x, y, whole, input_precision=PRECISION)
    tl.store(out + rows[:, None] * ROWS + rows[None, :], whole)


@triton.jit
def _widened(a, b, out, K, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    whole = tl.zeros((ROWS, ROWS), tl.float32)
    for start in range(0, K, BLOCK):
        x = tl.load(a + rows[:, None] * K + (start + k)[None, :]).to(tl.float32)
        y = tl.load(b + rows[None, :] * K + (start + k)[:, None]).to(tl.float32)
        whole = tl.dot(x, y, whole, input_precision="tf32")
    tl.store(out + rows[:, None] * ROWS + rows[None, :], whole)


@triton.jit
def _row_sum(x, out, N: tl.constexpr):
    tl.store(out + tl.arange(0, 1), tl.sum(tl.load(x + tl.arange(0, N))[None, :], 1))


@triton.jit
def _halves(x, N: tl.constexpr):
    if N == 1:
        return tl.reshape(x, (1,))
    else:
        return _halves(tl.sum(tl.reshape(x, (2, N // 2)), 0), N // 2)


@triton.jit
def _row_tree(x, out, N: tl.constexpr):
    tl.store(out + tl.arange(0, 1), _halves(tl.load(x + tl.arange(0, N)), N))


@triton.jit
def _unlike(a, b, out, K, ROWS: tl.constexpr, BLOCK: tl.constexpr, FORM: tl.constexpr):
    rows = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    at = out + rows[:, None] * ROWS + rows[None, :]
    first = tl.zeros((ROWS, ROWS), tl.float32)
    second = tl.zeros((ROWS, ROWS), tl.float32)
    if FORM == "begun":
        first = tl.load(at)
    for _ in range(2 if FORM == "not cleared" else 1):
        for start in range(0, K, 2 * BLOCK if FORM == "two sums" else BLOCK):
            x = tl.load(a + rows[:, None] * K + (start + k)[None, :])
            y = tl.load(b + rows[None, :] * K + (start + k)[:, None])
            if FORM == "blocks":
                block = tl.dot(x, y)
                first += tl.where(block == block, block, 0.0)
            elif FORM == "added":
                first += tl.dot(x, y)
            else:
                first = tl.dot(x, y, first)
            if FORM == "two sums":
                x = tl.load(a + rows[:, None] * K + (start + BLOCK + k)[None, :])
                y = tl.load(b + rows[None, :] * K + (start + BLOCK + k)[:, None])
                second = tl.dot(x, y, second)
            if FORM == "each twice":
                first = tl.dot(x, y, first)
        tl.store(at, first + second if FORM == "two sums" else first)
        at += ROWS * ROWS
