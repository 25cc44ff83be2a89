"""The only file that names Inductor settings and privates, one place per torch version; Dynamo's: `dynamo`.

`templates/pointwise/inductor.py` belongs to it: the pointwise functions in generated code.
"""

import functools
import importlib.util
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import fx

from bi_compile.errors import (
    CompilerNotFoundError,
    DisabledCheckError,
    OldDeviceError,
    TritonNotFoundError,
    UnsupportedDeviceError,
)
from bi_compile.templates.pointwise.inductor import canonical_codegen


def best_isa() -> str:
    """The instruction set Inductor's own kernels use on this machine: "avx512", "avx2" or "portable".

    Raises CompilerNotFoundError: Inductor tries the instructions out with the compiler.
    """
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    require_compiler()
    name = str(pick_vec_isa())
    for known in ("avx512", "avx2"):
        if name.startswith(known):
            return known
    return "portable"


_ISA_FLAGS = {
    "avx512": (
        "-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mf16c "
        "-DCPU_CAPABILITY=AVX512 -DCPU_CAPABILITY_AVX512 -DBI_ISA_AVX512"
    ),
    "avx2": "-mavx2 -mfma -mf16c -DCPU_CAPABILITY=AVX2 -DCPU_CAPABILITY_AVX2 -DBI_ISA_AVX2",
    "portable": "-DCPU_CAPABILITY=DEFAULT -DCPU_CAPABILITY_DEFAULT -DBI_ISA_PORTABLE",
}


def cpp_command(source: Path, *, flags: list[str], isa: str) -> list[str]:
    """The command, without `-o TARGET`, by which torch's own toolchain compiles `source` to a library.

    Raises CompilerNotFoundError.
    """
    from torch._inductor.cpp_builder import CppBuilder, CppTorchOptions

    require_compiler()
    options = CppTorchOptions(include_pytorch=True)
    builder = CppBuilder(name="kernels", sources=[str(source)], BuildOption=options, output_dir="/")
    command = shlex.split(builder.get_command_line())
    at = command.index("-o")
    del command[at : at + 2]
    # torch's own libraries export parts of an older C++ runtime: found first, they would catch none of our
    # exceptions. So the compiler's runtime comes before them.
    command[2:2] = ["-Wl,--no-as-needed", "-lstdc++"]
    # -march=native would let the compiler use more than the chosen instruction set; ours are explicit.
    command = [word for word in command if word != "-march=native"]
    return [*command, *_ISA_FLAGS[isa].split(), *flags]


def require_compiler() -> str:
    """The C++ compiler that torch's toolchain finds. Raises CompilerNotFoundError if there is none."""
    from torch._inductor import config, exc
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return get_cpp_compiler()
    except (exc.InvalidCxxCompiler, RuntimeError, OSError):
        searched = ", ".join(str(name) for name in config.cpp.cxx if name)
        raise CompilerNotFoundError(searched) from None


_PINNED = {
    # Inductor keeps bf16 and fp16 intermediates of a fused kernel in fp32; eager rounds each of them.
    "emulate_precision_casts": True,
    # Nor does it round a quotient of Triton's once.
    "eager_numerics.division_rounding": True,
    # A fused multiply-add rounds once where two ops round twice. (In Triton the setting above sees to that.)
    "cpp.enable_floating_point_contract_flag": "off",
    "cpp.enable_unsafe_math_opt_flag": False,
    # It folds x * 0 to 0, also where x is NaN or infinite.
    "joint_graph_constant_folding": False,
}
"""Settings every compilation runs under."""

_CHECKING_PASS = "post_grad_custom_post_pass"

_BEFORE_2_13 = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13)

_REFUSED = {
    "emulate_precision_casts": "fused kernels would round where unfused ones do not",
    "eager_numerics.division_rounding": "quotients would be approximate on CUDA devices",
    "cpp.enable_floating_point_contract_flag": "fused kernels would round where unfused ones do not",
    "cpp.enable_unsafe_math_opt_flag": "the C++ compiler would be free to reorder sums",
    "joint_graph_constant_folding": "x * 0 would be 0 where x is NaN",
    "cpp.simdlen": "graphs compiled for another vector length use another vector math",
    _CHECKING_PASS: "the check of the final graph runs in its place",
    "use_fast_math": "functions would be approximated differently in different kernels",
    "cpp.use_decompose_tanh": "tanh would have two formulas",
}


def is_option(key: str) -> bool:
    """Whether Inductor has a setting of this name."""
    from torch._inductor import config

    return key.replace("-", "_") in config.get_config_copy()


def breaks_promise(key: str, value: Any) -> str | None:
    """Why a setting would break batch invariance, or None."""
    key = key.replace("-", "_")
    if key in _PINNED and value == _PINNED[key]:
        return None
    return _REFUSED.get(key)


def mode_options(mode: str | None) -> dict[str, Any]:
    """The settings behind torch.compile's `mode`."""
    from torch._inductor import list_mode_options

    return dict(list_mode_options(mode)) if mode and mode != "default" else {}


def stock_decompositions() -> dict[torch._ops.OpOverload, Callable[..., Any]]:
    """The decompositions Inductor uses for ops it has no lowering for.

    With them those of interpolation, which PyTorch takes apart before any table is asked, but not everywhere.
    """
    from torch._decomp import get_decompositions
    from torch._inductor.decomposition import select_decomp_table

    table: dict[Any, Callable[..., Any]] = dict(select_decomp_table())
    for op, build in get_decompositions([getattr(torch.ops.aten, name) for name in _INTERPOLATIONS]).items():
        table.setdefault(op, build)
    return table


_INTERPOLATIONS = "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"


def compile_graph(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    settings: Mapping[str, Any],
    decompositions: Mapping[Any, Any],
    traced: Callable[[fx.Graph, str], None],
    verify: Callable[[fx.Graph], bool],
    generated: Callable[[str, str, str], None],
    key: str,
    cached: bool,
) -> Callable[..., Any]:
    """Compile a graph from Dynamo with Inductor.

    settings: Inductor settings of this compilation, below the pinned ones.
    traced: called with the graph of ATen ops and the direction, "forward" or "backward".
    verify: called with the final graph of each direction, after all of Inductor's own passes. Where it
        returns False the graph is not kept in Inductor's caches, which would bring it back without a word.
    generated: called with the direction, the file of the generated code and that code.
    key: what the result depends on besides the graph and the settings; part of every cache key.
    cached: whether results may come from, and go to, Inductor's caches.
    """
    from torch._functorch import config as functorch_config
    from torch._inductor import compile_fx as host

    told: list[fx.Graph] = []
    patches = {**settings, **_PINNED, _CHECKING_PASS: _final_pass(verify, told, key)}
    if not cached:
        patches["fx_graph_cache"] = False

    def inner(graph_module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Any:
        # The backward graph is compiled long after this function has returned: the settings come along.
        direction = "backward" if options.get("is_backward") else "forward"
        traced(graph_module.graph, direction)
        if "get_decomp_fn" in options:
            # The host's own, in torch 2.12, is a function within a function: keys of caches cannot name it.
            options["get_decomp_fn"] = functools.partial(_itself, decompositions)
        compile_inner = functools.partial(host.compile_fx_inner, graph_module, inputs, **options)
        if _graphs_only.get():
            return _check_only(graph_module, compile_inner)
        with canonical_codegen(), _gathering_once(), _saving_unless(told):
            compiled = compile_inner()
        generated(direction, _code_file(compiled), getattr(compiled, "source_code", ""))
        return compiled

    autograd_cache = functorch_config.enable_autograd_cache and cached
    with functorch_config.patch(enable_autograd_cache=autograd_cache), _rounding_casts():
        return host.compile_fx(
            module,
            list(example_inputs),
            inner_compile=inner,
            config_patches=patches,
            decompositions=decompositions,  # type: ignore[arg-type]
        )


def _itself(table: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return table


def _code_file(compiled: Any) -> str:
    from torch._inductor.codecache import get_path

    key = getattr(compiled, "cache_key", None)
    return get_path(key, "py")[2] if key else ""


def trace_artifact(name: str, text: Callable[[], str]) -> None:
    """Put a text among the artifacts of TORCH_TRACE, where that is on."""
    torch._logging.trace_structured(
        "artifact", metadata_fn=lambda: {"name": name, "encoding": "string"}, payload_fn=text
    )


_graphs_only: ContextVar[bool] = ContextVar("graphs_only", default=False)


class _Checked(Exception):
    """The final graph has been checked, and no code is wanted."""


@contextmanager
def graphs_only() -> Iterator[None]:
    """Check final graphs without generating code for them: they run op by op."""
    token = _graphs_only.set(True)
    try:
        yield
    finally:
        _graphs_only.reset(token)


def _check_only(module: fx.GraphModule, compile_inner: Callable[[], Any]) -> Callable[..., Any]:
    from functorch.compile import make_boxed_func

    graph = fx.Graph()  # a copy: compiling changes the graph in place
    graph.output(graph.graph_copy(module.graph, {}))
    unchanged = fx.GraphModule(module, graph)
    try:
        compile_inner()
    except Exception as error:
        if not isinstance(getattr(error, "inner_exception", error), _Checked):
            raise
    return make_boxed_func(unchanged.forward)


@contextmanager
def _rounding_casts() -> Iterator[None]:
    """Keep fp32 -> bf16 -> fp32, which rounds: before torch 2.13 a pass of the host drops it."""
    from torch._inductor.fx_passes import joint_graph

    entries = [e for group in joint_graph.patterns.patterns.values() for e in group]
    pointless = [e for e in entries if getattr(e, "handler", None) is joint_graph.pointless_convert]
    with ExitStack() as stack:
        if _BEFORE_2_13:
            for entry in pointless:
                stack.enter_context(mock.patch.object(entry, "extra_check", return_value=False))
        yield


@contextmanager
def _gathering_once() -> Iterator[None]:
    """Make a buffer of what is read by computed indices and used more than once.

    Inductor writes it out anew at each use, and the uses of uses: its time for that grows with the square of
    the number of reads, to minutes for a quantile and three ops on it. Loops are fused all the same.
    """
    from torch._inductor.ir import Pointwise, StorageBox

    stock = StorageBox.should_realize_on_reuse

    def should_realize(box: Any, users: int, **options: Any) -> bool:
        if stock(box, users, **options):
            return True
        if users < 2 or not isinstance(box.data, Pointwise):
            return False
        return "indirect_indexing" in box.data.inner_fn_opcount().used_ops

    with mock.patch.object(StorageBox, "should_realize_on_reuse", should_realize):
        yield


_told: ContextVar[Sequence[fx.Graph]] = ContextVar("told", default=())


@contextmanager
def _saving_unless(told: Sequence[fx.Graph]) -> Iterator[None]:
    """Keep what is compiled out of Inductor's cache if something is told of it by then."""
    _save_nothing_told()
    token = _told.set(told)
    try:
        yield
    finally:
        _told.reset(token)


@functools.cache
def _save_nothing_told() -> None:
    """From now on, by every thread: a graph is saved unless something is `_told` of it."""
    from torch._inductor.codecache import FxGraphCache

    stock = FxGraphCache._save_graph

    def save(*args: Any, **kwargs: Any) -> None:
        if not _told.get():
            stock(*args, **kwargs)

    FxGraphCache._save_graph = staticmethod(save)  # type: ignore[method-assign]


def _round_every_op(graph: fx.Graph) -> None:
    """Let the code of each op round its result: what a decomposition is made of, Inductor would only fuse.

    So a graph means the same whichever of its ops share a kernel, and the same as these ops one by one.
    """
    for node in graph.nodes:
        node.meta["low_precision_pointwise_barrier"] = True


def _final_pass(verify: Callable[[fx.Graph], bool], told: list[fx.Graph], key: str) -> Any:
    from torch._inductor.custom_graph_pass import CustomGraphPass

    class BiCompileVerify(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            if not verify(graph):
                told.append(graph)
            if _graphs_only.get():
                raise _Checked
            _round_every_op(graph)

        def uuid(self) -> str:
            return f"bi_compile-{key}"

    return BiCompileVerify()


def is_exact_function(target: Any) -> bool:
    """Whether a call target that is no ATen op is known to compute nothing on tensors' values."""
    return getattr(target, "__module__", "") in (
        "_operator",
        "math",
        "torch.sym_int",
        "torch.fx.experimental.sym_node",
    )


_OLDEST_CAPABILITY = (8, 0)


def refuse_foreign_devices(inputs: Sequence[Any]) -> None:
    """Raise for inputs on a device without kernels.

    UnsupportedDeviceError for devices other than the CPU and CUDA's, OldDeviceError and TritonNotFoundError
    for those of CUDA that are too old or have no compiler.
    """
    for device in {value.device for value in inputs if isinstance(value, torch.Tensor)}:
        if device.type == "cuda":
            capability = torch.cuda.get_device_capability(device)
            if capability < _OLDEST_CAPABILITY:
                raise OldDeviceError(str(device), torch.cuda.get_device_name(device), capability)
            if importlib.util.find_spec("triton") is None:
                raise TritonNotFoundError("generated")
        elif device.type != "cpu":
            raise UnsupportedDeviceError(str(device), "generated")


def refuse_disabled_check(settings: Mapping[str, Any]) -> None:
    """Raise DisabledCheckError if Inductor was told to skip the pass that checks the final graph.

    It matches names of passes as parts of one string, TORCHINDUCTOR_DISABLED_PASSES.
    """
    from torch._inductor import config

    for value in (settings.get("disabled_passes"), getattr(config, "disabled_passes", None)):
        if _CHECKING_PASS.upper() in str(value or "").upper():
            raise DisabledCheckError(str(value))
