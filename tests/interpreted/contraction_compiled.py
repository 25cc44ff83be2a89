"""What the compiler makes of the shipped products.

test_contraction_compiled imports this in a process of its own: other tests' interpreter replaces kernels.
"""

import os
import tempfile
from unittest import mock

import torch
import triton
import triton.language as tl

from bi_compile.errors import TuningError
from bi_compile.templates.contraction import gpu_certificates, gpu_configs, gpu_tuning
from bi_compile.templates.contraction.epilogue import is_heavy
from bi_compile.templates.contraction.gpu_configs import Config
from bi_compile.templates.gpu import ahead, device
from bi_compile.templates.gpu.certificate import certificate
from bi_compile.templates.gpu.device import Processor
from tests.templates.activations import programs as epilogues

PROCESSORS = {
    80: Processor(80, 108, 166912),
    86: Processor(86, 84, 101376),
    89: Processor(89, 128, 101376),
    90: Processor(90, 132, 232448),
    100: Processor(100, 148, 232448),
}


def shipped(capability: int, dtype: torch.dtype) -> list[Config]:
    processor = PROCESSORS[capability]
    return sorted(
        {p.config for both in (True, False) for p in gpu_configs.candidates(processor, dtype, both)}
    )


def table(capability: int, dtype: torch.dtype, forms: list[str]) -> list[dict]:
    rows = []
    for form in forms:
        for config in shipped(capability, dtype):
            compiled = gpu_certificates.compile_product(config, dtype, capability, form)
            used, ptx = ahead.resources(compiled), compiled.asm["ptx"]
            try:
                order = str(gpu_certificates.order(config, dtype, capability, form))
            except ValueError as error:
                order = f"unknown: {error}"
            rows.append(
                {
                    "config": list(config), "form": form, "order": order, "spilled": used.spilled,
                    "spilled in the loop": ahead.spills_in_innermost_loops(compiled) if used.spilled else 0,
                    "shared_memory": used.shared_memory, "limit": PROCESSORS[capability].shared_memory,
                    "families": sorted(
                        f for f in ("mma.sync", "wgmma.mma_async", "tcgen05.mma") if f in ptx
                    ),
                }
            )  # fmt: skip
    return rows


def finished(capability: int, dtype: torch.dtype, names: list[str], form: str) -> list[dict]:
    """Products with epilogues, as their configurations have them."""
    rows, programs = [], epilogues(dtype)
    for name in names:
        program = programs[name]
        for config in shipped(capability, dtype):
            if is_heavy(program) and config.large:
                compiled = gpu_certificates.compile_finishing(dtype, capability, program)
            else:
                own = "one" if form == "parallel" else form
                compiled = gpu_certificates.compile_product(
                    config, dtype, capability, own, "bias", False, program
                )
            used = ahead.resources(compiled)
            try:
                order = str(
                    gpu_certificates.order(config, dtype, capability, form, addend="bias", program=program)
                )
            except ValueError as error:
                order = f"unknown: {error}"
            rows.append(
                {
                    "name": name, "config": list(config), "order": order, "spilled": used.spilled,
                    "shared_memory": used.shared_memory, "limit": PROCESSORS[capability].shared_memory,
                }
            )  # fmt: skip
    return rows


def grouped(capability: int, dtype: torch.dtype, cut: str) -> list[dict]:
    rows = []
    for config in (c for c in shipped(capability, dtype) if not c.wide):
        compiled = gpu_certificates.compile_grouped(config, dtype, capability, cut)
        used = ahead.resources(compiled)
        try:
            order = str(gpu_certificates.order_grouped(config, dtype, capability, cut))
        except ValueError as error:
            order = f"unknown: {error}"
        in_loop = ahead.spills_in_innermost_loops(compiled) if used.spilled else 0
        rows.append({"config": list(config), "order": order, "spilled in the loop": in_loop})
    return rows


def certified(capability: int) -> str:
    try:
        return str(len(gpu_tuning.certified(PROCESSORS[capability], torch.bfloat16)))
    except TuningError as error:
        return str(error)


def tried(k: int) -> list[list]:
    """The configurations that tuning runs for weights [48, k], on a pretended Hopper with pretended times."""
    found = []

    def product(x, w, config=None):
        found.append(config)
        return x @ w

    stock = torch.randn
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.dict(os.environ, {"BI_COMPILE_CACHE_DIR": folder}),
        mock.patch.multiple(torch.cuda, get_device_name=lambda i: "Some GPU", current_device=lambda: 0),
        mock.patch.object(torch, "randn", lambda *shape, device: stock(*shape)),
        mock.patch.object(device, "processor", return_value=PROCESSORS[90]),
        mock.patch.object(gpu_tuning, "_microseconds", return_value=1.0),
    ):
        gpu_tuning.tune(product, [(48, k)], torch.bfloat16, (3,), lambda line: None)
    return sorted(config for config in found if config)


def with_another_block() -> str:
    """What is said where one configuration of fp32 has blocks of 16."""
    stranger = gpu_configs.SM_90_FP32[3]
    stranger = stranger._replace(config=stranger.config._replace(block_k=16))
    with mock.patch.object(gpu_configs, "SM_90_FP32", (*gpu_configs.SM_90_FP32, stranger)):
        try:
            gpu_tuning.certified(PROCESSORS[90], torch.float32)
        except TuningError as error:
            return str(error)
    return "nothing"


def epilogue(fused: bool) -> str:
    config = Config(64, 64, 64, 4, 3)
    compiled = gpu_certificates.compile_product(
        config, torch.bfloat16, 90, "one", "matrix scaled", True, enable_fp_fusion=fused
    )
    return str(certificate(compiled))


def controls() -> dict[str, str]:
    """Small kernels, most of which sum in another order than "plain"."""
    found = {}
    dots = {
        "plain": ("bf16", "ieee", 64, 64, False),
        "other tile": ("bf16", "ieee", 16, 32, False),
        "split": ("bf16", "ieee", 64, 64, True),
        "tf32": ("fp32", "tf32", 64, 64, False),
        "tf32x3 of 16": ("fp32", "tf32x3", 64, 16, False),
        "tf32x3 of 32": ("fp32", "tf32x3", 64, 32, False),
    }
    for name, (dtype, precision, rows, k, split) in dots.items():
        found[name] = _dot(_product, dtype, rows, k, PRECISION=precision, SPLIT=split)
    found["tf32x3 swapped"] = _dot(_product, "fp32", 64, 32, PRECISION="tf32x3", SPLIT=False, SWAP=True)
    found["split that is folded"] = _dot(_folded, "bf16", 64, 64)
    found["tf32 of widened bf16"] = _dot(_widened, "bf16", 16, 32)
    for name, kernel in (("sum", _row_sum), ("tree", _row_tree)):
        for warps in (4, 8):
            compiled = ahead.compile_kernel(
                kernel, 90, {"x": "*fp32", "out": "*fp32"}, {"N": 2048}, warps=warps, stages=1
            )
            found[f"{name} of {warps} warps"] = str(certificate(compiled))
    return found


def _dot(kernel, dtype: str, rows: int, k: int, **constants) -> str:
    types = {"a": f"*{dtype}", "b": f"*{dtype}", "out": "*fp32", "K": "i32"}
    constants = {"ROWS": rows, "BLOCK": k, "SWAP": False, **constants}
    constants = {n: v for n, v in constants.items() if n in kernel.arg_names}
    return str(certificate(ahead.compile_kernel(kernel, 90, types, constants, warps=4, stages=3)))


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
def _folded(a, b, out, K, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.arange(0, ROWS)
    k = tl.arange(0, BLOCK)
    whole = tl.zeros((ROWS, ROWS), tl.float32)
    for start in range(0, K, BLOCK):
        x = tl.load(a + rows[:, None] * K + (start + k)[None, :])
        y = tl.load(b + rows[None, :] * K + (start + k)[:, None])
        whole += tl.dot(x, y)
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
