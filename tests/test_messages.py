"""Each message a user can see, line by line."""

import re
from pathlib import Path

import pytest

from bi_compile import errors


def check(error: errors.BatchInvariantError, text: str) -> None:
    assert str(error) == text


def test_unsupported_op():
    check(
        errors.UnsupportedOpError(
            "aten.sort.default",
            signature="inputs f32[8, 64]",
            where="model.py:42, in forward:  x = x.sort()",
            reason="its result may depend on an order",
        ),
        "aten.sort.default has no batch-invariant lowering\n"
        "  inputs f32[8, 64]\n"
        "  its result may depend on an order\n"
        "  model.py:42, in forward:  x = x.sort()\n"
        'Hint: to compile anyway and leave this op alone: options={"on_unsupported": "warn"}. '
        "Its results, and all that follow from them, may then change with the batch.",
    )


def test_batch_mixing():
    check(
        errors.BatchMixingError(
            "bi_compile.mean",
            signature="inputs f32[4, 6]",
            where="model.py:42, in forward:  x = x - x.mean(0)",
            reason="it is taken over dims [0], and the batch is on dim 0",
            path=["x", "mul", "mean"],
        ),
        "bi_compile.mean mixes the samples of a batch: it is taken over dims [0], and the batch is on dim 0\n"
        "  inputs f32[4, 6]\n"
        "  the batch comes by x -> mul -> mean\n"
        "  model.py:42, in forward:  x = x - x.mean(0)\n"
        "Hint: if this dim holds no batch, say so before the call: bi_compile.mark_batch(x, dim), None for "
        "an input that all samples share. Behind a graph break, where inputs are a library's own: put the "
        "function under @bi_compile.eager(). To compile anyway and leave this op alone: "
        'options={"on_unsupported": "warn"}.',
    )


def test_batch_norm_in_training_names_the_remedy():
    error = errors.BatchMixingError("aten.native_batch_norm", signature="inputs", where=None, reason="so")
    assert "Hint: call model.eval(), or replace it by GroupNorm. If this dim holds no batch" in str(error)


def test_a_custom_op_can_be_vouched_for():
    error = errors.UnsupportedOpError("mylib.fused.default", signature="inputs", where=None, reason="so")
    assert "bi_compile.allow(torch.ops.mylib.fused, batch_dims=0). Or, to compile anyway" in str(error)
    error = errors.UnsupportedOpError("aten.mm.default", signature="inputs", where=None, reason="so")
    assert "allow" not in str(error)


def test_a_long_path_shows_both_ends():
    path = [f"op{i}" for i in range(20)]
    error = errors.BatchMixingError("aten.mm", signature="inputs", where=None, reason="so", path=path)
    assert "op0 -> op1 -> op2 -> op3 -> ... -> op16 -> op17 -> op18 -> op19" in str(error)


def test_unsupported_dtype():
    check(
        errors.UnsupportedDtypeError(
            "aten.mm.default", "torch.complex64", ["torch.float32", "torch.bfloat16"]
        ),
        "aten.mm.default does not support torch.complex64\n"
        "Hint: supported dtypes: torch.float32, torch.bfloat16. "
        "Convert the input, for example x.to(torch.float32).",
    )


def test_unsupported_device():
    check(
        errors.UnsupportedDeviceError("cuda", "contraction"),
        "no contraction kernels for device 'cuda'\n"
        "Hint: docs/gpu.md lists what runs on CUDA devices. On the CPU all kernels are there: .to('cpu').",
    )


def test_old_device():
    check(
        errors.OldDeviceError("cuda:0", "Tesla T4", (7, 5)),
        "device 'cuda:0', Tesla T4, has compute capability 7.5; the kernels need 8.0\n"
        "Hint: use an A100, an RTX 30 or anything newer, or move the model and its inputs to the CPU.",
    )


def test_triton_not_found():
    check(
        errors.TritonNotFoundError("contraction"),
        "the contraction kernels for CUDA devices need Triton, which is not installed\n"
        "Hint: PyTorch's CUDA builds for Linux bring it along; else: pip install triton",
    )


def test_tuning():
    check(
        errors.TuningError.not_certified(100, "not followed"),
        "nothing to tune on a device of capability 100: no certificate of one order\n"
        "  not followed\n"
        "Hint: the shipped choice of configurations goes on without tuning.",
    )
    check(
        errors.TuningError.other_bits("Config()", "[1, 2] x [2, 3]"),
        "a configuration has other bits than the rest for [1, 2] x [2, 3]\n"
        "  Config()\n"
        "Hint: nothing was stored for this shape. This is a bug of bi_compile: report it with your GPU's "
        "name and the version of Triton.",
    )
    check(
        errors.TuningError.bad_file("x.json", "no version"),
        "cannot use the tuned configurations in x.json\n"
        "  no version\n"
        "Hint: delete the file, or write it anew: python -m bi_compile tune",
    )


def test_outdated_tuning():
    assert str(errors.OutdatedTuningWarning("x.json", 0)) == (
        "the tuned configurations in x.json are of version 0: they are not used\n"
        "Hint: write them anew: python -m bi_compile tune"
    )


def test_compiler_not_found():
    check(
        errors.CompilerNotFoundError("g++"),
        "no C++ compiler found: the CPU kernels are compiled at first use\n"
        "  searched: g++\n"
        "Hint: install one, for example 'apt-get install g++', or point the environment variable CXX at it.",
    )


def test_kernel_build():
    check(
        errors.KernelBuildError("softmax", "g++ x.cpp", "line one\nline two\n"),
        "the C++ compiler failed on the softmax kernels\n"
        "  command: g++ x.cpp\n"
        "  line one\n"
        "  line two\n"
        "Hint: a g++ of version 10 or newer is needed; report this output if yours is.",
    )


def test_cache_directory():
    check(
        errors.CacheDirectoryError("/nowhere", "the directory is read-only"),
        "cannot write the kernel cache '/nowhere': the directory is read-only\n"
        "Hint: set the environment variable BI_COMPILE_CACHE_DIR to a directory that can be written.",
    )


def test_quantised_cache():
    check(
        errors.QuantizedCacheError("QuantizedCache"),
        "QuantizedCache makes a token depend on how its prompt was cut\n"
        "  keys and values are rounded some time after they were used, or by a scale of the whole batch\n"
        "Hint: use a dynamic or a static cache: leave cache_implementation out, or pass 'static'.",
    )


def test_recompile_limit():
    check(
        errors.RecompileLimitError("recompile_limit", "8", "'forward' (model.py:3)"),
        "recompile limit reached (recompile_limit=8): Dynamo would run 'forward' (model.py:3) in eager mode\n"
        "  eager PyTorch is not batch-invariant\n"
        "Hint: let sizes be dynamic (do not pass dynamic=False), or raise the limit: "
        "torch._dynamo.config.recompile_limit = 64.",
    )


def test_disabled_check():
    check(
        errors.DisabledCheckError("POST_GRAD_CUSTOM_POST_PASS"),
        "disabled_passes='POST_GRAD_CUSTOM_POST_PASS' would skip the check of the final graph\n"
        "  it matches 'post_grad_custom_post_pass', whose place the check takes\n"
        "Hint: take that name out of TORCHINDUCTOR_DISABLED_PASSES, or of the option 'disabled_passes'.",
    )


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        (
            "outside graphs",
            "compute it by ops that have a canonical form (docs/ops.md); "
            "fullgraph=True refuses to leave graphs.",
        ),
        (
            "gradient outside graphs",
            "call backward() under bi_compile.eager(); fullgraph=True refuses to leave graphs.",
        ),
        (
            "attention outside graphs",
            "fullgraph=True refuses to leave graphs; bi_compile.eager() has their bits.",
        ),
        (
            "multi_dot outside graphs",
            "write a @ b @ c, or call it under bi_compile.eager(); fullgraph=True refuses to leave graphs.",
        ),
        ("stance", "leave torch.compiler.set_stance's force_backend out."),
        ("disabled", "unset it, or call the model under bi_compile.eager()."),
        ("subnormal numbers", "call torch.set_flush_denormal(False)."),
    ],
)
def test_leak_warning(kind, hint):
    warning = errors.LeakWarning("x runs as stock PyTorch", kind=kind, where="model.py:3, in f:  x(y)")
    assert str(warning) == f"x runs as stock PyTorch\n  model.py:3, in f:  x(y)\nHint: {hint}"
    kinds = {f"{what}outside graphs" for what in ("", "gradient ", "attention ", "multi_dot ")}
    assert set(errors._WAYS_OUT) == kinds | {"stance", "disabled", "subnormal numbers"}


def test_factory_errors():
    check(
        errors.FactoryError.no_path("models"),
        "'models' names no factory\nHint: write package.module:factory, for example my_models.bert:make.",
    )
    check(
        errors.FactoryError.no_module("models", "No module named 'models'"),
        "cannot import 'models': No module named 'models'\n"
        "Hint: run this in the folder the module is imported from, or put that folder on PYTHONPATH.",
    )
    check(
        errors.FactoryError.no_attribute("models", "mkae", ["make", "Block"]),
        "module 'models' has no 'mkae'\n"
        "Hint: did you mean 'make'? its functions and classes are Block, make.",
    )
    check(
        errors.FactoryError.wrong_value("models:make", "a Tensor"),
        "models:make returned a Tensor\n"
        "Hint: return (model, inputs): a callable, and a tensor, a tuple of arguments or a dict of keyword "
        "arguments whose tensors stack at least 2 samples along dim 0.",
    )


def test_option_errors():
    check(
        errors.OptionError.breaks_promise("use_fast_math", True, "why"),
        "Inductor option 'use_fast_math'=True would break batch invariance: why\n"
        "Hint: leave 'use_fast_math' out; every other Inductor option passes through.",
    )
    check(
        errors.OptionError.unknown_key("zzz", ["dump", "on_unsupported"]),
        "unknown option 'zzz'\nHint: bi_compile's own options are dump, on_unsupported.",
    )
    check(
        errors.OptionError.bad_value("dump", 3, ["a folder name"]),
        "option 'dump' cannot be 3\nHint: valid values: a folder name.",
    )


def test_batch_size():
    warning = errors.BatchSizeWarning(
        "the model's Python asks whether B > 4",
        among="batches that answer B > 4 alike",
        where="model.py:42, in forward:  if x.shape[0] > 4:",
    )
    assert str(warning) == (
        "the model's Python asks whether B > 4, and B is the size of the batch: "
        "a sample keeps its bits among batches that answer B > 4 alike\n"
        "  model.py:42, in forward:  if x.shape[0] > 4:\n"
        "Hint: decide by something else than the number of samples. Where every sample gets the same either "
        'way: warnings.simplefilter("ignore", bi_compile.errors.BatchSizeWarning).'
    )
    assert warning.where == "model.py:42, in forward:  if x.shape[0] > 4:"


def test_graph_break():
    warning = errors.GraphBreakWarning("call of print", where="model.py:42, in forward:  print(x)")
    assert str(warning) == (
        "the batch is not followed across a graph break: call of print\n"
        "  each sum outside graphs has its one order, but may be taken over the batch\n"
        "  model.py:42, in forward:  print(x)\n"
        "Hint: fullgraph=True refuses to leave graphs. Rows and numbers that the data choose stay in the "
        "graph with torch._dynamo.config.capture_dynamic_output_shape_ops = True and "
        "capture_scalar_outputs = True. "
        "A function that keeps samples apart may run outside: @bi_compile.eager() says so."
    )


def test_unknown_batch():
    warning = errors.UnknownBatchWarning(
        "aten.reshape",
        reason="the reshape cuts the batch across dims",
        where="model.py:42, in forward:  x.reshape(2, -1)",
        path=["x", "mul", "reshape"],
    )
    assert str(warning) == (
        "unknown whether aten.reshape keeps the samples of a batch apart: "
        "the reshape cuts the batch across dims\n"
        "  the batch comes by x -> mul -> reshape\n"
        "  model.py:42, in forward:  x.reshape(2, -1)\n"
        "Hint: compare bits, with bi_compile.testing.assert_batch_invariant(model, inputs). Or keep the "
        "batch in a dim of its own there, and say bi_compile.mark_batch(x, None) of inputs that all samples "
        "share."
    )


@pytest.mark.parametrize(
    "name", [n for n in vars(errors) if n.endswith(("Error", "Warning")) and n != "BatchInvariantError"]
)
def test_every_error_has_a_test_here(name):
    assert re.search(rf"errors\.{name}\b", Path(__file__).read_text())
