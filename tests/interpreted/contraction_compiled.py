"""What the compiler makes of the shipped products.

test_contraction_compiled imports this in a process of its own: other tests' interpreter replaces kernels.
"""

import itertools
import os
import tempfile
from unittest import mock

import torch

from bi_compile.errors import TuningError
from bi_compile.templates.contraction import gpu_certificates, gpu_configs, gpu_halves, gpu_tuning
from bi_compile.templates.contraction.epilogue import is_heavy
from bi_compile.templates.contraction.gpu_configs import Config
from bi_compile.templates.gpu import ahead, device
from bi_compile.templates.gpu.certificate import certificate
from bi_compile.templates.gpu.device import Processor
from tests.templates.activations import programs as epilogues
from tests.templates.activations import programs_of_halves

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
            if form == "sequence" and not config.walks(capability):
                continue
            compiled = gpu_certificates.compile_product(config, dtype, capability, form)
            used, ptx = ahead.resources(compiled), compiled.asm["ptx"]
            try:
                order = str(gpu_certificates.order(config, dtype, capability, form))
            except ValueError as error:
                order = f"unknown: {error}"
            rows.append(
                {
                    "config": list(config), "form": form, "order": order,
                    "spilled": used.spilled,
                    "shared_memory": used.shared_memory, "limit": PROCESSORS[capability].shared_memory,
                    "families": sorted(
                        f for f in ("mma.sync", "wgmma.mma_async", "tcgen05.mma") if f in ptx
                    ),
                }
            )  # fmt: skip
    return rows


def added(capability: int, dtype: torch.dtype, form: str, ways: list[tuple]) -> list[list]:
    """What is spilled where a matrix is added, scaled or not, and behind that another or none."""
    found, programs = [], epilogues(dtype)
    for config in shipped(capability, dtype):
        if form == "sequence" and not config.walks(capability):
            continue
        for scale, behind in ways:
            addend, program = "matrix scaled" if scale else "matrix", behind and programs[behind]
            compiled = gpu_certificates.compile_product(
                config, dtype, capability, form, addend, scale, program
            )
            found.append([*config, scale, behind, ahead.resources(compiled).spilled])
    return found


def finished(capability: int, dtype: torch.dtype, names: list[str], form: str) -> list[dict]:
    """Products with epilogues, as their configurations have them."""
    rows, programs = [], epilogues(dtype)
    for name in names:
        program = programs[name]
        for config in shipped(capability, dtype):
            if form == "sequence" and not config.walks(capability):
                continue
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
                    "name": name, "config": list(config), "order": order,
                    "spilled": used.spilled,
                    "shared_memory": used.shared_memory, "limit": PROCESSORS[capability].shared_memory,
                }
            )  # fmt: skip
    return rows


def grouped(capability: int, dtype: torch.dtype, cut: str) -> list[dict]:
    """Descriptors read rows alone that groups cut, and only these configurations have them."""
    rows = []
    for config in shipped(capability, dtype):
        if config.wide or (config.descriptors and cut != "M"):
            continue
        for chunked in (True, False):
            if (chunked and not config.walks(capability, plain=True)) or (cut == "K" and not chunked):
                continue
            compiled = gpu_certificates.compile_grouped(config, dtype, capability, cut, chunked)
            try:
                order = str(gpu_certificates.order_grouped(config, dtype, capability, cut, chunked))
            except ValueError as error:
                order = f"unknown: {error}"
            found = ahead.resources(compiled).spilled
            rows.append({"config": list(config), "chunked": chunked, "order": order, "spilled": found})
    return rows


def grouped_finished(capability: int, dtype: torch.dtype, names: list[str]) -> list[dict]:
    """Groups of rows with epilogues, as their configurations have them."""
    rows, programs = [], epilogues(dtype)
    for name in names:
        program = programs[name]
        for config in shipped(capability, dtype):
            for chunked in (True, False):
                if config.wide or (chunked and not config.walks(capability, plain=True)):
                    continue
                if is_heavy(program) and config.large:
                    continue  # a kernel of its own, see `finished`
                compiled = gpu_certificates.compile_grouped(config, dtype, capability, "M", chunked, program)
                order = gpu_certificates.order_grouped(config, dtype, capability, "M", chunked, program)
                found = ahead.resources(compiled).spilled
                rows.append(
                    {
                        "name": name,
                        "config": list(config),
                        "chunked": chunked,
                        "order": str(order),
                        "spilled": found,
                    }
                )
    return rows


def halves(capability: int, dtype: torch.dtype) -> list[dict]:
    """Products cut in two, in all tiles of which both halves are summed side by side."""
    rows = []
    tiles = {tile for config in shipped(capability, dtype) if (tile := gpu_halves.tile_of(config))}
    for name, program in programs_of_halves(dtype).items():
        for tile in sorted(tiles):
            for chunked, groups in itertools.product((False, True), repeat=2):
                what = (tile, dtype, capability, chunked, groups, program)
                used = ahead.resources(gpu_certificates.compile_halves(*what))
                order = str(gpu_certificates.order_halves(*what))
                rows.append(
                    {
                        "name": name, "config": list(tile), "chunked": chunked, "order": order,
                        "spilled": used.spilled, "shared_memory": used.shared_memory,
                        "limit": PROCESSORS[capability].shared_memory,
                    }
                )  # fmt: skip
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
