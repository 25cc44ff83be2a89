"""Every message a user can see: what could not be done, the value, where, and the way out.

Dynamo wraps whatever a backend raises in BackendCompilerFailed and shows the class name and the first line,
so both stand alone. No torch here: the messages can be read and tested without it.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class BatchInvariantError(Exception):
    """Base of all errors of bi_compile."""


def _text(what: str, details: Iterable[str], where: str | None, hint: str) -> str:
    place = [f"  {where}"] if where else []
    return "\n".join([what, *(f"  {detail}" for detail in details), *place, f"Hint: {hint}"])


class _Message(BatchInvariantError):
    """An error put together from its parts: one line of what, then details, then where, then a hint."""

    def __init__(
        self, what: str, *, details: Iterable[str] = (), where: str | None = None, hint: str
    ) -> None:
        super().__init__(_text(what, details, where, hint))
        self.what = what
        self.where = where
        self.hint = hint


class OptionError(_Message):
    """An option that does not exist, has a value that does not exist, or breaks the promise."""

    @classmethod
    def unknown_key(cls, key: str, known: Iterable[str]) -> "OptionError":
        known = sorted(known)
        near = get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return cls(f"unknown option {key!r}", hint=f"{hint}bi_compile's own options are {', '.join(known)}.")

    @classmethod
    def bad_value(cls, key: str, value: object, valid: Iterable[object]) -> "OptionError":
        names = [str(v) for v in valid]
        near = get_close_matches(str(value), names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return cls(f"option {key!r} cannot be {value!r}", hint=f"{hint}valid values: {', '.join(names)}.")

    @classmethod
    def breaks_promise(cls, key: str, value: object, why: str) -> "OptionError":
        return cls(
            f"Inductor option {key!r}={value!r} would break batch invariance: {why}",
            hint=f"leave {key!r} out; every other Inductor option passes through.",
        )


class UnsupportedOpError(_Message):
    """An order-sensitive or unknown op that has no canonical lowering."""

    def __init__(
        self, op: str, *, signature: str, where: str | None, reason: str, compiling: bool = True
    ) -> None:
        anyway = (
            'to compile anyway and leave this op alone: options={"on_unsupported": "warn"}.'
            if compiling
            else 'to leave this op to stock PyTorch: bi_compile.eager(on_unsupported="warn").'
        )
        super().__init__(
            f"{op} has no batch-invariant lowering",
            details=[signature, reason],
            where=where,
            hint=f"{_vouching(op)}{anyway} Its results, and all that follow from them, may then change with "
            "the batch.",
        )
        self.op = op


def _vouching(op: str) -> str:
    """What a user can do who knows a custom op."""
    namespace, name, *_ = [*op.split("."), ""]
    if namespace in ("aten", "prims", "bi_compile", "inductor", "quantized", "higher_order") or not name:
        return ""
    return (
        "if the op treats every sample by itself, vouch for it, and it runs sample by sample: "
        f"bi_compile.allow(torch.ops.{namespace}.{name}, batch_dims=0). Or, "
    )


class BatchMixingError(_Message):
    """An op whose result for one sample depends on the other samples of its batch."""

    def __init__(
        self, op: str, *, signature: str, where: str | None, reason: str, path: Sequence[str] = ()
    ) -> None:
        way = [f"the batch comes by {' -> '.join(_shortened(path))}"] if path else []
        training = "batch_norm" in op
        super().__init__(
            f"{op} mixes the samples of a batch: {reason}",
            details=[signature, *way],
            where=where,
            hint=("call model.eval(), or replace it by GroupNorm. " if training else "")
            + ("If" if training else "if")
            + " this dim holds no batch, say so before the call: bi_compile.mark_batch(x, dim), None for "
            "an input that all samples share. Behind a graph break, where inputs are a library's own: put "
            "the function under @bi_compile.eager(). To compile anyway and leave this op alone: "
            'options={"on_unsupported": "warn"}.',
        )
        self.op = op


def _shortened(path: Sequence[str], most: int = 8) -> list[str]:
    return list(path) if len(path) <= most else [*path[: most // 2], "...", *path[-most // 2 :]]


class UnsupportedDtypeError(_Message):
    """A dtype that no template computes in."""

    def __init__(self, op: str, dtype: str, supported: Iterable[str]) -> None:
        super().__init__(
            f"{op} does not support {dtype}",
            hint=f"supported dtypes: {', '.join(supported)}. "
            "Convert the input, for example x.to(torch.float32).",
        )
        self.op = op


class UnsupportedDeviceError(_Message):
    """A device for which a family of templates has no kernels."""

    def __init__(self, device: str, family: str, *, where: str | None = None) -> None:
        super().__init__(
            f"no {family} kernels for device {device!r}",
            where=where,
            hint="docs/gpu.md lists what runs on CUDA devices. On the CPU all kernels are there: .to('cpu').",
        )


class OldDeviceError(_Message):
    """A CUDA device that the kernels do not run on."""

    def __init__(self, device: str, name: str, capability: tuple[int, int]) -> None:
        super().__init__(
            f"device {device!r}, {name}, has compute capability {capability[0]}.{capability[1]}; "
            "the kernels need 8.0",
            hint="use an A100, an RTX 30 or anything newer, or move the model and its inputs to the CPU.",
        )


class QuantizedCacheError(_Message):
    """A cache of keys and values that rounds them, some time after they were used."""

    def __init__(self, cache: str) -> None:
        super().__init__(
            f"{cache} makes a token depend on how its prompt was cut",
            details=[
                "keys and values are rounded some time after they were used, or by a scale of the whole batch"
            ],
            hint="use a dynamic or a static cache: leave cache_implementation out, or pass 'static'.",
        )


class TritonNotFoundError(_Message):
    """CUDA tensors, but no Triton to compile kernels with."""

    def __init__(self, family: str) -> None:
        super().__init__(
            f"the {family} kernels for CUDA devices need Triton, which is not installed",
            hint="PyTorch's CUDA builds for Linux bring it along; else: pip install triton",
        )


class TuningError(_Message):
    """Configurations of a product that cannot be shown to sum in one order, or a file that names others."""

    @classmethod
    def not_certified(cls, capability: int, reason: str) -> "TuningError":
        return cls(
            f"nothing to tune on a device of capability {capability}: no certificate of one order",
            details=[reason],
            hint="the shipped choice of configurations goes on without tuning.",
        )

    @classmethod
    def other_bits(cls, config: str, shape: str) -> "TuningError":
        return cls(
            f"a configuration has other bits than the rest for {shape}",
            details=[config],
            hint="nothing was stored for this shape. This is a bug of bi_compile: report it with your GPU's "
            "name and the version of Triton.",
        )

    @classmethod
    def bad_file(cls, path: str, reason: str) -> "TuningError":
        return cls(
            f"cannot use the tuned configurations in {path}",
            details=[reason],
            hint="delete the file, or write it anew: python -m bi_compile tune",
        )


class OutdatedTuningWarning(UserWarning):
    """A file of tuned configurations of another version: as if it were not there."""

    def __init__(self, path: str, version: object) -> None:
        what = f"the tuned configurations in {path} are of version {version!r}: they are not used"
        super().__init__(_text(what, (), None, "write them anew: python -m bi_compile tune"))


class CompilerNotFoundError(_Message):
    """No C++ compiler, so the CPU kernels cannot be built."""

    def __init__(self, searched: str) -> None:
        super().__init__(
            "no C++ compiler found: the CPU kernels are compiled at first use",
            details=[f"searched: {searched}"],
            hint="install one, for example 'apt-get install g++', "
            "or point the environment variable CXX at it.",
        )


class KernelBuildError(_Message):
    """The C++ compiler ran and failed."""

    def __init__(self, family: str, command: str, output: str) -> None:
        super().__init__(
            f"the C++ compiler failed on the {family} kernels",
            details=[f"command: {command}", *output.strip().splitlines()[-20:]],
            hint="a g++ of version 10 or newer is needed; report this output if yours is.",
        )


class CacheDirectoryError(_Message):
    """No directory in which compiled kernels can be kept."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"cannot write the kernel cache {path!r}: {reason}",
            hint="set the environment variable BI_COMPILE_CACHE_DIR to a directory that can be written.",
        )


class RecompileLimitError(_Message):
    """Dynamo was about to run a function in eager mode, without asking the backend."""

    def __init__(self, limit: str, value: str, function: str) -> None:
        super().__init__(
            f"recompile limit reached ({limit}={value}): Dynamo would run {function} in eager mode",
            details=["eager PyTorch is not batch-invariant"],
            hint="let sizes be dynamic (do not pass dynamic=False), or raise the limit: "
            f"torch._dynamo.config.{limit or 'recompile_limit'} = 64.",
        )


class DisabledCheckError(_Message):
    """Inductor was told to skip the pass that checks the final graph."""

    def __init__(self, value: str) -> None:
        super().__init__(
            f"disabled_passes={value!r} would skip the check of the final graph",
            details=["it matches 'post_grad_custom_post_pass', whose place the check takes"],
            hint="take that name out of TORCHINDUCTOR_DISABLED_PASSES, or of the option 'disabled_passes'.",
        )


class BatchSizeWarning(RuntimeWarning):
    """The model's Python asks for the size of the batch, and computes what the answer says.

    Shown once a line of the user.
    """

    def __init__(self, what: str, *, among: str, where: str | None) -> None:
        super().__init__(
            _text(
                f"{what}, and B is the size of the batch: a sample keeps its bits among {among}",
                (),
                where,
                "decide by something else than the number of samples. Where every sample gets the same "
                'either way: warnings.simplefilter("ignore", bi_compile.errors.BatchSizeWarning).',
            )
        )
        self.where = where


class UnknownBatchWarning(RuntimeWarning):
    """The batch could not be followed through an op: whether it keeps the samples apart, nobody can say.

    Shown for each graph that is compiled.
    """

    def __init__(self, op: str, *, reason: str, where: str | None, path: Sequence[str]) -> None:
        way = [f"the batch comes by {' -> '.join(path)}"] if path else []
        super().__init__(
            _text(
                f"unknown whether {op} keeps the samples of a batch apart: {reason}",
                way,
                where,
                "compare bits, with bi_compile.testing.assert_batch_invariant(model, inputs). Or keep the "
                "batch in a dim of its own there, and say bi_compile.mark_batch(x, None) of inputs that all "
                "samples share.",
            )
        )


class GraphBreakWarning(RuntimeWarning):
    """Dynamo left its graph: the batch is not followed through what runs until the next one.

    Shown once a line of the user.
    """

    def __init__(self, reason: str, *, where: str | None) -> None:
        super().__init__(
            _text(
                f"the batch is not followed across a graph break: {reason}",
                ["each sum outside graphs has its one order, but may be taken over the batch"],
                where,
                "fullgraph=True refuses to leave graphs. Rows and numbers that the data choose stay in the "
                "graph with torch._dynamo.config.capture_dynamic_output_shape_ops = True and "
                "capture_scalar_outputs = True. A function that keeps samples apart may run outside: "
                "@bi_compile.eager() says so.",
            )
        )
        self.where = where


class LeakWarning(RuntimeWarning):
    """Something runs as stock PyTorch, and nothing is promised for it, or has other bits than in a graph.

    Shown once a line of the user.
    """

    def __init__(self, what: str, *, kind: str, where: str | None) -> None:
        super().__init__(_text(what, (), where, _WAYS_OUT[kind]))
        self.kind = kind
        self.where = where


_WAYS_OUT = {
    "outside graphs": "compute it by ops that have a canonical form (docs/ops.md); "
    "fullgraph=True refuses to leave graphs.",
    "gradient outside graphs": "call backward() under bi_compile.eager(); "
    "fullgraph=True refuses to leave graphs.",
    "attention outside graphs": "fullgraph=True refuses to leave graphs; bi_compile.eager() has their bits.",
    "multi_dot outside graphs": "write a @ b @ c, or call it under bi_compile.eager(); "
    "fullgraph=True refuses to leave graphs.",
    "stance": "leave torch.compiler.set_stance's force_backend out.",
    "disabled": "unset it, or call the model under bi_compile.eager().",
    "subnormal numbers": "call torch.set_flush_denormal(False).",
}


class FactoryError(_Message):
    """The argument of `python -m bi_compile check` does not lead to a model and its inputs."""

    @classmethod
    def no_path(cls, path: str) -> "FactoryError":
        return cls(
            f"{path!r} names no factory",
            hint="write package.module:factory, for example my_models.bert:make.",
        )

    @classmethod
    def no_module(cls, module: str, reason: str) -> "FactoryError":
        return cls(
            f"cannot import {module!r}: {reason}",
            hint="run this in the folder the module is imported from, or put that folder on PYTHONPATH.",
        )

    @classmethod
    def no_attribute(cls, module: str, name: str, found: Iterable[str]) -> "FactoryError":
        found = sorted(found)
        near = get_close_matches(name, found, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return cls(
            f"module {module!r} has no {name!r}",
            hint=f"{hint}its functions and classes are {', '.join(found) or 'none'}.",
        )

    @classmethod
    def wrong_value(cls, path: str, value: str) -> "FactoryError":
        return cls(
            f"{path} returned {value}",
            hint="return (model, inputs): a callable, and a tensor, a tuple of arguments or a dict of "
            "keyword arguments whose tensors stack at least 2 samples along dim 0.",
        )
