"""The order of summation of every configuration, read off what the compiler makes of it; no GPU is needed."""

from typing import Any

import torch

from bi_compile import numerics
from bi_compile.templates.contraction import gpu_grouped_kernels as grouped
from bi_compile.templates.contraction import gpu_halves_kernels as halves
from bi_compile.templates.contraction import gpu_kernels as kernels
from bi_compile.templates.contraction.epilogue import is_heavy
from bi_compile.templates.contraction.gpu_configs import PRECISION, Config
from bi_compile.templates.contraction.gpu_descriptor_kernels import product_by_descriptors
from bi_compile.templates.contraction.gpu_epilogue import function
from bi_compile.templates.contraction.gpu_grouped import options as grouped_options
from bi_compile.templates.gpu.ahead import compile_kernel
from bi_compile.templates.gpu.certificate import Certificate, certificate, composed
from bi_compile.templates.gpu.device import ALL_REGISTERS

FORMS = ("one", "sequence", "parallel")
_NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_SAME = {"b_more": "b"}


def order(
    config: Config,
    dtype: torch.dtype,
    capability: int,
    form: str,
    *,
    addend: str = "none",
    scale: bool = False,
    program: str | None = None,
) -> Certificate:
    """The certificate of a product in one of FORMS. Raises ValueError for what is not followed.

    addend, scale: as in `gpu_kernels._finish`; program: of `epilogue.py`.
    """
    if form != "parallel" and _apart(config, program):
        alone = order(config, dtype, capability, form, addend=addend, scale=scale)
        return _finished(alone, dtype, capability, program)
    if form != "parallel":
        compiled = compile_product(config, dtype, capability, form, addend, scale, program)
        return certificate(compiled, same=_SAME)
    chains = certificate(compile_product(config, dtype, capability, form), same=_SAME)
    return composed(chains, certificate(compile_adding(dtype, capability, addend, scale, program)))


def _apart(config: Config, program: str | None) -> bool:
    """Whether an epilogue is always a kernel behind the product's."""
    return program is not None and is_heavy(program) and config.large


def _finished(alone: Certificate, dtype: torch.dtype, capability: int, program: str | None) -> Certificate:
    """Of a stored product and its epilogue."""
    assert program is not None
    behind = certificate(compile_finishing(dtype, capability, program), same={"rounded": alone.stores[0]})
    return behind._replace(instructions=alone.instructions, contracted=alone.contracted or behind.contracted)


def compile_product(
    config: Config,
    dtype: torch.dtype,
    capability: int,
    form: str,
    addend: str = "none",
    scale: bool = False,
    program: str | None = None,
    **options: Any,
) -> Any:
    """The kernel for a weight [N, K] and rows [M, K], compiled for a capability; `options` are Triton's."""
    name = _NAMES[dtype]
    types = dict.fromkeys("M N K a_batch a_row b_batch b_column c_batch c_row".split(), "i32")
    types |= dict.fromkeys(("a", "b", "c", "other", "out"), f"*{name}") | {"alpha": "fp32", "beta": "fp32"}
    if form == "parallel":
        types["out"] = "*fp32"
    constants: dict[str, Any] = {
        "CHUNK": numerics.contraction_gpu_chunk(dtype.itemsize), "CHUNKS": form, "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": 8, "SWAP": config.swap,
        "PIECE": config.stored_at_a_time(capability, addend, program is not None),
        "PRECISION": PRECISION[dtype], "SCALE": scale, "ADDEND": addend,
        "c_column": 1, "EPILOGUE": function(program, dtype),
    }  # fmt: skip
    if config.descriptors:
        kernel = product_by_descriptors
        blocks = {"a": config.block_m, "b": config.block_n, "b_more": config.more}
        for argument, rows in blocks.items():
            types[argument] = f"tensordesc<{name}[{rows}, {config.block_k}]>"
        if not config.more:
            constants["b_more"] = None
        types |= dict.fromkeys("tiles tiles_m tiles_n programs".split(), "i32") | {"waiting": "*fp32"}
        constants |= {"BY_COLUMN": True, "MORE": config.more, "WAITS": config.waits(capability, form)}
    else:
        kernel = kernels.product
        constants |= {"a_k": 1, "b_k": 1, "EVEN_K": True}
    options = config.options(capability, form) | options
    return compile_kernel(kernel, capability, types, constants, **options)


def compile_adding(
    dtype: torch.dtype,
    capability: int,
    addend: str = "none",
    scale: bool = False,
    program: str | None = None,
) -> Any:
    """The kernel that adds chunks summed in parallel."""
    types = dict.fromkeys("batch M N chunks c_batch c_row".split(), "i32")
    types |= {"chains": "*fp32", "alpha": "fp32", "beta": "fp32"}
    types |= dict.fromkeys(("c", "other", "out"), f"*{_NAMES[dtype]}")
    constants = {"BLOCK": 1024, "SCALE": scale, "ADDEND": addend, "c_column": 1}
    constants |= {"EPILOGUE": function(program, dtype)}
    return compile_kernel(kernels.add_chunks, capability, types, constants, num_warps=4, num_stages=3)


def compile_finishing(dtype: torch.dtype, capability: int, program: str) -> Any:
    """The kernel of a heavy epilogue behind a product of large tiles."""
    types = dict.fromkeys("batch M N".split(), "i32")
    types |= dict.fromkeys(("rounded", "other", "out"), f"*{_NAMES[dtype]}")
    constants = {"BLOCK": 1024, "EPILOGUE": function(program, dtype)}
    return compile_kernel(kernels.finish, capability, types, constants, num_warps=4, num_stages=3)


def order_grouped(
    config: Config,
    dtype: torch.dtype,
    capability: int,
    cut: str,
    chunked: bool = True,
    program: str | None = None,
) -> Certificate:
    """The certificate of a grouped product whose groups cut "M", "N" or "K".

    chunked: of one whose K is longer than a chunk, or cut; program: of `epilogue.py`.
    """
    if _apart(config, program):
        return _finished(order_grouped(config, dtype, capability, cut, chunked), dtype, capability, program)
    return certificate(compile_grouped(config, dtype, capability, cut, chunked, program))


def compile_grouped(
    config: Config,
    dtype: torch.dtype,
    capability: int,
    cut: str,
    chunked: bool = True,
    program: str | None = None,
) -> Any:
    """The kernel for 128 experts or more, whose weights are [N, K], compiled for a capability."""
    name = _NAMES[dtype]
    types = dict.fromkeys(grouped.grouped_product.arg_names, "i32") | {"offs": "*i32"}
    types |= dict.fromkeys(("a", "b", "other", "out"), f"*{name}")
    constants: dict[str, Any] = {
        "GROUPS": 256, "CHUNK": numerics.contraction_gpu_chunk(dtype.itemsize), "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n, "BLOCK_K": config.block_k, "GROUP_M": 8, "SWAP": config.swap,
        "PRECISION": PRECISION[dtype], "CHUNKED": chunked, "PIECE": config.piece,
        "EPILOGUE": function(program, dtype),
    }  # fmt: skip
    if cut == "M" and config.descriptors:
        kernel = grouped.grouped_rows_by_descriptors
        for argument, rows in {"a": config.block_m, "b": config.block_n}.items():
            types[argument] = f"tensordesc<{name}[{rows}, {config.block_k}]>"
        constants["BY_COLUMN"] = True
    else:
        kernel = grouped.grouped_product
        constants |= {"CUT": cut, "EVEN_K": cut != "K"}
        constants |= {"a_row": 1, "b_column": 1} if cut == "K" else {"a_k": 1, "b_k": 1}
    options = grouped_options(config, capability, chunked, program)
    return compile_kernel(kernel, capability, types, constants, **options)


def order_halves(
    config: Config, dtype: torch.dtype, capability: int, chunked: bool, groups: bool, program: str
) -> Certificate:
    """The certificate of a product that its program cuts in two, both summed in one kernel."""
    return certificate(compile_halves(config, dtype, capability, chunked, groups, program))


def compile_halves(
    config: Config, dtype: torch.dtype, capability: int, chunked: bool, groups: bool, program: str
) -> Any:
    """The kernel for weights [2 N, K], of 128 experts or of one; block_n of config holds both halves."""
    name, each = _NAMES[dtype], config.block_n // 2
    types = dict.fromkeys(("total", "groups", "N", "K"), "i32") | {"offs": "*i32"}
    types |= dict.fromkeys(("other", "out"), f"*{name}")
    for argument, rows in {"a": config.block_m, "b": each}.items():
        types[argument] = f"tensordesc<{name}[{rows}, {config.block_k}]>"
    constants: dict[str, Any] = {
        "GROUPS": 256 if groups else 0, "CHUNK": numerics.contraction_gpu_chunk(dtype.itemsize),
        "CHUNKED": chunked, "BLOCK_M": config.block_m, "BLOCK_N": each, "BLOCK_K": config.block_k,
        "GROUP_M": 8, "PIECE": config.piece, "PRECISION": PRECISION[dtype], "SWAP": config.swap,
        "BY_COLUMN": True, "EPILOGUE": function(program, dtype),
    }  # fmt: skip
    options = config.options(capability) | ALL_REGISTERS
    return compile_kernel(halves.halves_by_descriptors, capability, types, constants, **options)
