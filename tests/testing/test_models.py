"""Random models: grammar, code, programs, shrinking; stock PyTorch is refuted by them and we are not."""

import os
import random
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, find, given, reproduce_failure, settings
from hypothesis.database import InMemoryExampleDatabase
from torch._dynamo.variables.torch import TorchInGraphFunctionVariable
from torch.utils._python_dispatch import TorchDispatchMode

import bi_compile
from bi_compile.testing.checking import Outcome, check_model
from bi_compile.testing.grammar import OPS
from bi_compile.testing.messages import BatchVarianceError, InaccurateResultError
from bi_compile.testing.op_tables import ROUGH
from bi_compile.testing.random_models import RandomModel
from bi_compile.testing.scripts import script_of
from bi_compile.testing.shrinking import smallest
from bi_compile.testing.strategies import models
from bi_compile.testing.subjects import require_accurate
from bi_compile.testing.together import check_together
from bi_compile.testing.values import KINDS
from tests.bits import assert_same_bits

SHAPES = ((4,), (8, 8), (1, 3), (4, 5, 6))
VARIED = RandomModel((301,), (("linear", (0, 0, 9, 0, 0, 0)), ("tanh", (0,) * 6)), seed=1)
"""A model that no stock kernel keeps invariant on any machine we know."""


def standing(name: str) -> list[RandomModel]:
    drawn = [
        RandomModel.fitting(shape, [(name, (d, d, 3, 1, 0, 0))], dtype=dtype)
        for shape in SHAPES
        for dtype in ("float32", "bfloat16")
        for d in range(3)
    ]
    after_another = RandomModel.fitting((4,), [("mul", (0,) * 6), (name, (0,) * 6)])
    return [model for model in [*drawn, after_another] if model.steps and model.steps[-1][0] == name]


@pytest.mark.parametrize("name", OPS)
def test_an_op_stands_somewhere_and_lets_no_sample_see_another(name):
    models = standing(name)
    assert models, "the op fits nowhere"
    ran = 0
    for model in models[:4]:
        x, module = model.inputs(4), model.module()
        try:
            alone = module(x[1:2])
        except (NotImplementedError, RuntimeError):  # a dtype without a kernel
            continue
        x[0], x[2:] = torch.nan, 3e4
        # Not its bits: this is stock PyTorch.
        torch.testing.assert_close(module(x)[1:2], alone, rtol=1e-2, atol=1e-2, equal_nan=True)
        ran += 1
    assert ran


def test_the_shapes_of_the_grammar_are_those_of_pytorch():
    rng, checked = random.Random(0), 0
    for _ in range(150):
        model = RandomModel.drawn(rng)
        try:
            y = model.module()(model.inputs(3))
        except (NotImplementedError, RuntimeError):
            continue
        assert y.shape[0] == 3, model
        assert y.is_floating_point()
        checked += 1
    assert checked > 130


def test_a_model_is_its_data():
    model = RandomModel.drawn(random.Random(3))
    again = eval(repr(model))
    assert again == model
    assert again.source == model.source == str(model)
    assert_same_bits(again.inputs(5), model.inputs(5))
    state = torch.random.get_rng_state()
    for one, other in zip(again.module().parameters(), model.module().parameters(), strict=True):
        assert_same_bits(one, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_steps_that_do_not_fit_are_left_out():
    model = RandomModel.fitting((4,), [("conv2d", (0,) * 6), ("relu", (0,) * 6), ("bmm", (0,) * 6)])
    assert [name for name, _ in model.steps] == ["relu"]
    assert model.source.count("self.") == 0


def test_weights_can_be_shared_and_the_batch_merged():
    model = RandomModel.fitting(
        (4,),
        [
            ("linear_no_bias", (0, 0, 3, 0, 0, 0)),
            ("linear_no_bias", (0, 0, 3, 0, 0, 1)),
            *((name, (0,) * 6) for name in ("unsqueeze", "transpose", "stack", "flatten")),
        ],
    )
    assert len(list(model.module().parameters())) == 1
    assert model.source.count("self.w0)") == 2
    x = model.inputs(3)
    torch.testing.assert_close(model.module()(x)[1:2], model.module()(x[1:2]))
    assert "-1" in model.source.splitlines()[-1], "the batch was merged and is taken out again"


def test_what_the_strategy_does_not_know_is_refused():
    with pytest.raises(ValueError, match=r"ops \['fly'\] unknown"):
        find(models(ops=["fly"]), lambda model: True)


def test_models_shrink_to_few_steps():
    quick = settings(max_examples=300, derandomize=True, database=None, phases=[Phase.generate, Phase.shrink])
    model = find(
        models(ops=("relu", "linear", "softmax", "tanh")),
        lambda m: any(name == "softmax" for name, _ in m.steps),
        settings=quick,
    )
    assert model == RandomModel((1,), (("softmax", (0,) * 6),))


def test_smallest_leaves_what_is_needed():
    model = RandomModel.fitting(
        (9, 8, 5),
        [(name, (3,) * 6) for name in ("relu", "softmax", "linear", "tanh", "exp")],
        dtype="bfloat16",
    )

    def fails(m: RandomModel) -> bool:
        return [name for name, _ in m.steps if name in ("softmax", "exp")] == ["softmax", "exp"]

    small = smallest(model, fails, tries=500)
    assert small == RandomModel((1,), (("softmax", (0,) * 6), ("exp", (0,) * 6)))
    assert smallest(model, fails, tries=1) == model


def test_a_failure_of_stock_comes_with_a_program_that_fails_alike():
    with pytest.raises(BatchVarianceError, match="sample 1 changes with the batch") as failure:
        check_model(VARIED, backend="eager")
    (script,) = failure.value.__notes__
    assert script.startswith("# BatchVarianceError: the output of sample 1 changes")
    assert repr(VARIED) in script
    assert "bi_compile" not in script.split("import torch", 1)[1], "it stands alone"
    names = {}
    exec(script, names)
    with pytest.raises(AssertionError, match="expected, alone:") as shown:
        names["test_a_sample_has_the_same_bits_in_the_batch"]()
    alone, together = re.findall(r": (\[.*\])", str(shown.value))
    assert alone != together, "two numbers that differ look different"


def test_a_program_shows_that_a_result_is_far_from_float64():
    error = InaccurateResultError("the output is farther from float64", details=[], hint="")
    script = script_of(VARIED, backend="inaccurate", failure=error)
    names = {}
    exec(
        script.replace(
            'torch.compile(model, backend="inaccurate")',
            "lambda x: torch.cat([model(row) for row in x.split(1)]) * 1.001",
        ),
        names,
    )
    with pytest.raises(AssertionError, match=r"error \d.*, stock .*, allowed"):
        names["test_a_sample_has_the_same_bits_in_the_batch"]()


def test_hypothesis_reproduces_a_failure_by_its_blob_and_by_its_database():
    database = InMemoryExampleDatabase()
    once = settings(max_examples=50, derandomize=False, database=database, print_blob=True, deadline=None)

    def of(model):
        check_model(model, backend="eager")

    def failure(how, test=of):
        with pytest.raises(BatchVarianceError) as found:
            how(given(model=models(ops=("linear",), dtypes=[torch.float32]))(test))()
        return found.value

    first = failure(once)
    (blob,) = re.findall(r"@reproduce_failure\((.*)\) as", "\n".join(first.__notes__))
    version, data = eval(blob)
    assert str(failure(lambda test: reproduce_failure(version, data)(once(test)))) == str(first)
    assert str(failure(settings(once, phases=[Phase.reuse]))) == str(first)


@pytest.mark.parametrize("gradients", [False, True])
def test_the_same_program_passes_with_our_backend(gradients):
    check = check_model(VARIED, gradients=gradients)
    assert check == Outcome("same")
    assert ", dynamic=True)" in script_of(VARIED, backend="batch_invariant", dynamic=True)
    script = script_of(VARIED, backend="batch_invariant", gradients=gradients)
    names = {}
    exec(script, names)
    names["test_a_sample_has_the_same_bits_in_the_batch"]()


def test_a_program_shows_that_a_graph_has_other_bits_than_eager_ops(monkeypatch):
    model = RandomModel((2,), (("addcdiv", (0,) * 6),))
    assert check_model(model, gradients=True) == Outcome("same")
    handlers: Any = TorchInGraphFunctionVariable._get_handlers()
    monkeypatch.setitem(handlers, torch.addcdiv, handlers[torch.addcdiv].__wrapped__)  # several ops again
    with pytest.raises(BatchVarianceError, match="the gradient of sample") as failure:
        check_model(model, gradients=True)
    (script,) = failure.value.__notes__
    names = {}
    exec(script, names)
    with pytest.raises(AssertionError, match="expected, alone:"):
        names["test_a_sample_has_the_same_bits_in_the_batch"]()


@pytest.mark.parametrize("kind", KINDS)
def test_a_program_of_stock_pytorch_holds_its_inputs_and_needs_torch_alone(kind):
    for model in (RandomModel((40, 2), (), kind=kind), RandomModel((3,), (), kind=kind)):
        script = script_of(model, backend="eager", place=((1, 0), 0, float("nan")))
        assert "bi_compile" not in script
        names = {}
        exec(script.replace("\n    def result", "\n    globals()['x'] = x\n\n    def result"), names)
        names["test_a_sample_has_the_same_bits_in_the_batch"]()
        x = model.inputs(5)[[1, 0]]
        x[1] = torch.nan
        assert_same_bits(names["x"], x)


def test_outcomes_that_are_no_failure():
    same_for_all = RandomModel((3,), (("one_hot", (0,) * 6), ("amax", (1, *(0,) * 5))))
    assert check_model(same_for_all, backend="eager") == Outcome("vacuous")
    refused = RandomModel((3,), (("bessel", (0,) * 6),))
    outcome = check_model(refused, gradients=True)
    assert outcome.what == "refused"
    assert "aten.i0.default has no batch-invariant lowering" in outcome.why
    without_gradient = RandomModel((3,), (("heaviside", (0,) * 6),))
    assert check_model(without_gradient, gradients=True).what == "invalid"


def test_a_result_far_from_float64_is_noticed():
    exact, stock = VARIED.module(), VARIED.module()(VARIED.inputs(5))
    near = [row[None] for row in stock]
    require_accurate(exact, VARIED.inputs(5), near, stock)
    with pytest.raises(InaccurateResultError, match="farther from float64"):
        require_accurate(exact, VARIED.inputs(5), [row + 1e-3 for row in near], stock)


def test_stock_eager_is_refuted_within_50_models():
    rng, failed = random.Random(0), 0
    for _ in range(50):
        try:
            check_model(RandomModel.drawn(rng), backend="eager")
        except BatchVarianceError:
            failed += 1
    assert failed >= 1


LONG = ((7, 33), (1100,), (5, 4, 6), (1, 9, 3))
OF_THE_HOST = set(
    """
    mm bmm addmm baddbmm mv addmv dot linear matmul convolution _cdist_forward sum mean var std var_mean
    std_mean prod amax amin max min norm linalg_vector_norm logsumexp _softmax _log_softmax
    native_layer_norm rms_norm native_group_norm native_batch_norm
    _scaled_dot_product_flash_attention_for_cpu cumsum cumprod logcumsumexp scatter_add scatter_reduce
    index_add index_reduce _embedding_bag topk avg_pool1d avg_pool2d exp exp2 expm1 log log1p log2 log10
    sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc erfinv lgamma sigmoid silu gelu
    softplus mish elu rsqrt pow atan2 hypot addcmul addcdiv lerp
    """.split()
)
"""Stock kernels with an order of evaluation or a formula of the host's. On small shapes many happen to be
invariant, so that no comparison of bits tells them from ours."""


class Called(TorchDispatchMode):
    """The names of the ops with floating results that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else [result]
        if func.namespace == "aten" and any(
            isinstance(x, torch.Tensor) and x.is_floating_point() for x in results
        ):
            self.names.add(func.overloadpacket.__name__)
        return result


def kernels_of_the_host(module, x) -> set[str]:
    with torch.no_grad(), Called() as called, bi_compile.eager():
        module(x)
    return called.names & OF_THE_HOST


@pytest.mark.parametrize("name", OPS)
def test_each_op_is_canonical(name):
    numbers = (0, 0, 9, 1, 0, 0)
    drawn = [
        RandomModel.fitting(shape, [("mul", (0,) * 6), (name, numbers)], dtype=dtype, kind=kind)
        for shape in LONG
        for dtype, kind in (("float32", "cancelling"), ("bfloat16", "normal"))
    ]
    models = [model for model in drawn if len(model.steps) == 2] or standing(name)
    for model in models[:4]:
        if check_model(model, backend="canonical").what != "refused":
            assert not kernels_of_the_host(model.module(), model.inputs(3))


def test_kernels_of_the_host_are_seen():
    """The control of the test above: an op that is left to stock shows."""
    x = torch.randn(3, 5)
    with Called() as called:
        F.layer_norm(x @ x.T, (3,)).exp()
    assert called.names >= {"mm", "native_layer_norm", "exp"} <= OF_THE_HOST


CHAIN = "lerp round_decimals exp addcmul add_y gelu div log1p addcdiv mul_y tanh sigmoid".split()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fused_ops_have_the_bits_of_ops_run_one_by_one(dtype):
    model = RandomModel.fitting((37,), [(name, (0,) * 6) for name in CHAIN], dtype=dtype)
    assert len(model.steps) == len(CHAIN)
    check_model(model)


@pytest.mark.parametrize(
    ("dtype", "kind"), [("float32", "normal"), ("bfloat16", "normal"), ("float32", "wide")]
)
def test_fused_arithmetic_rounds_after_each_op(dtype, kind):
    # No function at the end that would hide a rounding. A sine of wide values is one of near and far lanes.
    names = ["sin"] if kind == "wide" else "mul add square add mul add cube".split()
    model = RandomModel.fitting((301,), [(name, (0,) * 6) for name in names], dtype=dtype, kind=kind)
    assert check_model(model) == Outcome("same")


COUNT = 5 if os.environ.get("BI_COMPILE_TEST_PROFILE", "fast") == "fast" else 300


@pytest.mark.parametrize("gradients", [False, True])
def test_random_models_are_invariant(gradients):
    chosen = [number for number in range(COUNT) if (number % 4 == 3) == gradients]
    models = [RandomModel.drawn(random.Random(f"fast {number}")) for number in chosen]
    for verdict in check_together(models, gradients=gradients):
        if isinstance(verdict, Exception):
            raise verdict


FOUND = {
    "the gradient of a norm, through pow_": (RandomModel((5,), (("norm_3", (0,) * 6),)), True),
    "the sign of a complex number": (RandomModel((33,), (("complex", (0,) * 6),)), True),
    "the square of a deviation overflows": (
        RandomModel((3,), (("std_mean", (0,) * 6),), dtype="float16", kind="cancelling"),
        False,
    ),
    "a product overflows": (
        RandomModel((7,), (("bilinear", (0, 0, 3, 1, 0, 0)),), dtype="float16", kind="cancelling"),
        False,
    ),
    "a norm of one value alone": (RandomModel((1, 1), (("group_norm", (0,) * 6),)), False),
    "rounded on purpose, with weights": (
        RandomModel((3,), (("to_fp32", (0,) * 6), ("linear", (0,) * 6))),
        False,
    ),
    "bf16 takes subnormals for zero": (
        RandomModel((1,), (("matvec", (0,) * 6),), dtype="bfloat16", kind="subnormal"),
        False,
    ),
    "subnormal": (RandomModel((7,), (("erf", (0,) * 6),), kind="subnormal"), False),
    "a copy that keeps strides": (
        RandomModel((2, 3), (("transpose", (0,) * 6), ("index_fill", (0,) * 6))),
        False,
    ),
    "stock's error depends on the batch": (RandomModel((3,), (("pow", (0,) * 6),), kind="wide"), False),
}
"""What campaigns found, shrunk: the model, and whether it is one of gradients."""


@pytest.mark.parametrize("name", FOUND)
def test_what_campaigns_found_stays_mended(name):
    model, gradients = FOUND[name]
    alone = name == "a norm of one value alone"
    assert check_model(model, backend="canonical", gradients=gradients).what == (
        "invalid" if alone else "same"
    )


def test_rough_ops_are_ops():
    assert set(OPS) >= ROUGH
