"""One architecture in one dtype: invariant, refused by name, or wrong."""

import copy
import re
from dataclasses import dataclass

import torch

from bi_compile import report
from bi_compile.testing import BatchVarianceError, Pad, assert_batch_invariant
from bi_compile.testing.in_double import in_double
from tests.architectures.zoo import LENGTH, Architecture

BACKEND = "batch_invariant"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SAMPLES = 6
LENGTHS = (LENGTH, 7, 10, 4, 9, LENGTH - 1)
TOLERANCE = 1.5
MANY = 33
"""Samples whose errors are compared: with fewer, stock products come from kernels with other errors."""

INVARIANT, REFUSED, VARIES, INACCURATE, FAILED = "invariant", "refused", "varies", "inaccurate", "failed"


STOCK = "PyTorch itself"
"""What refuses a model that stock eager PyTorch cannot run either."""


@dataclass(frozen=True)
class Verdict:
    """What became of it.

    kind: INVARIANT, REFUSED (the compilation stopped at an op and named it), or one of the others, which no
        entry of the list may have: VARIES, INACCURATE, FAILED.
    detail: the refused op, STOCK, or the first line of what went wrong.
    """

    kind: str
    detail: str = ""


def constant_floats():
    """With dynamic=True the host traces an epsilon as a symbol first, and then everything anew."""
    return torch._dynamo.config.patch(specialize_float=True)


@torch.inference_mode()
def check(
    architecture: Architecture, dtype: str, *, dynamic: bool | None = None, device: str = "cpu"
) -> Verdict:
    """Batches of 1 to 33, padding where there is a mask, nothing left to stock, as close to float64 as it.

    None asks for the size of the batch in a way that bears upon results, so none may be told to.

    dynamic: as for torch.compile. Without it every size is symbolic where samples have several lengths, which
    spares compilations, and the batch alone where they have one.
    """
    dynamic = dynamic or architecture.masked or None
    torch.compiler.reset()
    model = architecture.build(DTYPES[dtype]).to(device)
    inputs = tuple(x.to(device) for x in architecture.samples(SAMPLES, DTYPES[dtype]).values())
    stock = architecture.call(model)
    with report.collect() as found, constant_floats():
        # fullgraph: code between graphs would run in stock eager mode.
        compiled = torch.compile(stock, backend=BACKEND, dynamic=dynamic, fullgraph=True)
        try:
            assert_batch_invariant(compiled, *inputs, trials=1, seed=1)
            if architecture.masked:
                padding = Pad(lengths=LENGTHS, dim=(1, 1, None)[: len(inputs)])
                assert_batch_invariant(compiled, *inputs, padding=padding, sizes=(1, 3, 8), seed=2)
        except BatchVarianceError as error:
            return Verdict(VARIES, _first_line(error))
        except Exception as error:
            if _raises(stock, inputs):
                return Verdict(REFUSED, STOCK)
            op = re.search(
                r"(?:Unsupported(?:Op|Dtype)|BatchMixing)Error: (\S+) (?:has no|does not|mixes)", str(error)
            )
            return (
                Verdict(REFUSED, op[1].removesuffix(".default"))
                if op
                else Verdict(FAILED, _first_line(error))
            )
    if not found.compilations or found.left_alone:
        return Verdict(FAILED, "something was left to stock PyTorch")
    asked = [q for q in found.questions if q.expression not in architecture.asks]
    if asked:
        return Verdict(FAILED, f"the size of the batch: {asked[0].reason}")
    exact = in_double(architecture.call(_in_double(model)))
    many = tuple(x.to(device) for x in architecture.samples(MANY, DTYPES[dtype]).values())
    ratio = _error_ratio(compiled, stock, exact, many)
    return (
        Verdict(INVARIANT) if ratio <= TOLERANCE else Verdict(INACCURATE, f"{ratio:.2f} times stock's error")
    )


@torch.inference_mode()
def stock_varies(architecture: Architecture, dtype: str, *, device: str = "cpu") -> bool | None:
    """The control: whether stock eager PyTorch changes bits on the same batches; None where it cannot run."""
    stock = architecture.call(architecture.build(DTYPES[dtype]).to(device))
    inputs = (x.to(device) for x in architecture.samples(SAMPLES, DTYPES[dtype]).values())
    try:
        assert_batch_invariant(stock, *inputs, trials=1, seed=1)
    except BatchVarianceError:
        return True
    except RuntimeError:
        return None
    return False


def _in_double(model):
    model = copy.deepcopy(model).double()
    if hasattr(model, "set_experts_implementation"):
        # Stock grouped products have no fp64 on CUDA devices.
        model.set_experts_implementation("batched_mm")
    return model


def _raises(stock, inputs) -> bool:
    try:
        stock(*inputs)
    except RuntimeError:
        return True
    return False


def _error_ratio(compiled, stock, exact, inputs) -> float:
    """Our root mean square error against float64 over that of stock eager."""
    worst = 0.0
    for name, wanted in exact(*inputs).items():
        ours = (compiled(*inputs)[name].double() - wanted).square().mean().sqrt()
        theirs = (stock(*inputs)[name].double() - wanted).square().mean().sqrt()
        worst = max(worst, float(ours / theirs) if theirs else float(ours > 0) * float("inf"))
    return worst


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]
