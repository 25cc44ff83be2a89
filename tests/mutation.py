"""Defects put into a copy of the package one at a time: which does the fast profile of the tests catch?

    python -m tests.mutation            # all, as a table
    python -m tests.mutation softmax    # those whose name or file holds the word

A defect is data: a file of bi_compile, what stands there, what is put in its place, and the tests that must
fail. These run first without any defect, and must pass. The copy lies in MUTATION_FOLDER (out/mutation): its
kernels are built once, which takes minutes, and again where a defect changes their sources.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Defect:
    """name: what is wrong. edits: (file below bi_compile, text, replacement). tests: arguments for pytest."""

    name: str
    edits: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def op(*names: str) -> tuple[str, ...]:
    """The test of single ops of the grammar, run op by op."""
    ids = " or ".join(f"test_each_op_is_canonical[{name}]" for name in names)
    return "tests/testing/test_models.py", "-k", ids


CHAIN = ("tests/testing/test_models.py", "-k", "test_fused_ops")
ARITHMETIC = ("tests/testing/test_models.py", "-k", "test_fused_arithmetic")
_EXACT = ("analysis/order.py", "    abs add bitwise_and", "    {} abs add bitwise_and")


def as_stock(words: str) -> tuple[str, str, str]:
    """Ops are taken for exact, so that eager mode leaves them to PyTorch."""
    file, old, new = _EXACT
    return file, old, new.format(words)


DEFECTS = (
    Defect(
        "linear drops its bias",
        (("passes/capture.py", "run(*_autocast(input, weight, bias))", "run(*_autocast(input, weight, None))"),),
        op("linear"),
    ),
    Defect(
        "an addend is dropped unless beta is 1",
        (("templates/contraction/cpu.cpp", "c.defined() && beta != 0)", "c.defined() && beta == 1)"),),
        op("addmm", "baddbmm"),
    ),
    Defect(
        "bf16 products choose their order by the number of rows",
        (("templates/contraction/cpu.cpp", "if (bf16_order() == Bf16Order::kTiles) {",
          "if (bf16_order() == Bf16Order::kTiles && std::max(p.rows, p.columns) % 2) {"),),
        ("tests/templates/test_contraction.py", "-k", "does_not_see"),
    ),
    Defect(
        "an odd rest of rows is summed in another order",
        (("templates/contraction/chain.h", "columns + k * kColumns<S> + j * kWidth);\n#pragma GCC unroll 16\n"
          "      for (int i = 0; i < Rows; ++i) {\n#pragma GCC unroll 4\n"
          "        for (int j = 0; j < kTileVectors; ++j) sum[i][j] = S::step(sum[i][j], rows + i * kRowStride<S> + k, column[j]);",
          "columns + (Rows % 2 ? block + end - 1 - k : k) * kColumns<S> + j * kWidth);\n#pragma GCC unroll 16\n"
          "      for (int i = 0; i < Rows; ++i) {\n#pragma GCC unroll 4\n"
          "        for (int j = 0; j < kTileVectors; ++j) sum[i][j] = S::step(sum[i][j], rows + i * kRowStride<S> + "
          "(Rows % 2 ? block + end - 1 - k : k), column[j]);"),),
        op("linear", "matmul"),
    ),
    Defect(
        "products of many rows go to the host's library",
        (("passes/contraction.py", "    return bi.mm(a, b) if is_floating(a)",
          "    if a.shape[0] > 4:\n        return NotImplemented\n    return bi.mm(a, b) if is_floating(a)"),
         as_stock("mm")),
        op("matmul", "addmm", "matvec", "cdist"),
    ),
    Defect(
        "batched products are left to the host",
        (("passes/contraction.py", "    return bi.bmm(a, b) if is_floating(a)", "    return NotImplemented if is_floating(a)"),
         as_stock("bmm")),
        op("bmm", "gram", "einsum"),
    ),
    Defect(
        "sums are left to the host",
        (("passes/reduction.py", "return bi.sum(_cast(x, dtype), _dims(x, dim), keepdim) if is_floating(x, dtype) else",
          "return NotImplemented if is_floating(x, dtype) else"), as_stock("sum")),
        op("sum", "sum_2", "einsum_sum"),
    ),
    Defect(
        "rows are split in two when there are more than four",
        (("templates/reduction/cpu.cpp", "      if (view_.contiguous()) return span<Tree>(x_, begin, end, element);",
          "      if (view_.contiguous() && view_.rows > 4 && end - begin > 8)\n"
          "        return Tree::combine(span<Tree>(x_, begin, begin + 8, element), span<Tree>(x_, begin + 8, end, element));\n"
          "      if (view_.contiguous()) return span<Tree>(x_, begin, end, element);"),),
        op("sum", "mean"),
    ),
    Defect(
        "means divide by one too many",
        (("passes/reduction.py", "    return bi.mean(_cast(x, dtype), _dims(x, dim), keepdim) if",
          "    return bi.mean(_cast(x, dtype), _dims(x, dim), keepdim) * (1 - 2**-7) if"),),
        op("mean", "mean_kept"),
    ),
    Defect(
        "variances ignore the correction",
        (("passes/reduction.py", "    return bi.var(x, _dims(x, dim), _correction(correction), keepdim)\n\n\n@rewrite(aten.std.",
          "    return bi.var(x, _dims(x, dim), 1.0, keepdim)\n\n\n@rewrite(aten.std."),),
        op("var", "standardize"),
    ),
    Defect(
        "softmax is left to the host",
        (("passes/softmax.py", "    return bi.softmax(x.to(torch.float32) if half_to_float else x, dim)", "    return NotImplemented"),
         as_stock("_softmax")),
        op("softmax", "softmin"),
    ),
    Defect(
        "a row keeps the maximum of the rows before it",
        (("templates/softmax/cpu.cpp",
          "  const V maximum(largest<A>(n, [&](int64_t i, int64_t count) { return load(x + i, count); }));",
          "  static thread_local A kept = A(0);\n"
          "  kept = std::max(kept, largest<A>(n, [&](int64_t i, int64_t count) { return load(x + i, count); }));\n"
          "  const V maximum(kept);"),),
        op("softmax", "log_softmax"),
    ),
    Defect(
        "a strided row reuses the tile of the row before it",
        (("templates/softmax/cpu.cpp", "        gather(view.reduced, from, 0, view.n, elements.get());",
          "        if (row == begin) gather(view.reduced, from, 0, view.n, elements.get());"),),
        ("tests/templates/test_softmax.py", "-k", "any_shape_layout_and_dim"),
    ),
    Defect(
        "layer_norm drops its bias",
        (("templates/normalization/cpu.cpp", "      if (affine.bias) y = y + load(affine.bias + i, count);\n", ""),),
        op("layer_norm"),
    ),
    Defect(
        "norms of many rows fold their scale into their weight",
        (("templates/normalization/cpu.cpp", "      if (affine.weight) y = y * load(affine.weight + i, count);",
          "      if (affine.weight && affine.finite) y = centred(load(x + i, count)) * (rstd * load(affine.weight + i, count));\n"
          "      if (affine.weight && !affine.finite) y = y * load(affine.weight + i, count);"),),
        op("rms_norm", "layer_norm"),
    ),
    Defect(
        "group_norm forgets its weight",
        (("passes/normalization.py", "    if weight is not None:\n        y = y * _opmath(weight).reshape(1, c, 1)\n", ""),),
        op("group_norm"),
    ),
    Defect(
        "additions by index run backwards when there are many lines",
        (("templates/scatter/lines.h",
          "        body(out + slot(index[i * along_.index]) * along_.out, src + i * along_.src);",
          "        const int64_t j = count_ > 4 ? along_.size - 1 - i : i;\n"
          "        body(out + slot(index[j * along_.index]) * along_.out, src + j * along_.src);"),),
        op("scatter_add", "index_add"),
    ),
    Defect(
        "a running sum starts where the one before it ended",
        (("templates/scan/cpu.cpp", "  V state(Chain::template kIdentity<A>);",
          "  static thread_local V state(Chain::template kIdentity<A>);"),),
        op("cumsum"),
    ),
    Defect(
        "convolutions drop their bias",
        (("templates/convolution/cpu.cpp", "call.bias.defined() ? call.bias.const_data_ptr<T>() : nullptr", "nullptr"),),
        op("conv1d", "conv2d"),
    ),
    Defect(
        "attention ignores its mask",
        (("passes/capture.py", "    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)",
          "    query, key, value, attn_mask = _autocast(query, key, value, None)"),),
        op("attention_bias"),
    ),
    Defect(
        "what a mask hides leaks its NaN",
        (("templates/attention/tile.h", "      if (nan && sum == sum) {", "      if (nan && sum != sum) {"),),
        ("tests/templates/test_attention.py", "-k", "masked_keys_anywhere or later_key"),
    ),
    Defect(
        "attention is scaled by the number of samples",
        (("passes/capture.py", "    query, key, value, attn_mask = _autocast(query, key, value, attn_mask)",
          "    query, key, value, attn_mask = _autocast(query * (1 + 2**-9 * query.shape[0]), key, value, attn_mask)"),),
        op("attention", "heads"),
    ),
    Defect(
        "exp, tanh and sigmoid are the host's outside graphs",
        (("eager_mode.py", "canonical().get(func), transcendental().get(func)):", "canonical().get(func)):"),
         as_stock("exp tanh sigmoid erf sin cos log")),
        op("exp", "tanh", "sigmoid", "sin"),
    ),
    Defect(
        "graphs use the host's exp and tanh",
        (("inductor.py", "with canonical_codegen(), _gathering_once(), _saving_unless(told):",
          "with _gathering_once(), _saving_unless(told):"),),
        ARITHMETIC,
    ),
    Defect(
        "fused kernels contract multiply-adds",
        (("inductor.py", '"cpp.enable_floating_point_contract_flag": "off",', '"cpp.enable_floating_point_contract_flag": "fast",'),),
        ARITHMETIC,
    ),
    Defect(
        "fused kernels keep bf16 in fp32",
        (("inductor.py", '"emulate_precision_casts": True,', '"emulate_precision_casts": False,'),),
        ARITHMETIC,
    ),
    Defect(
        "rounding to decimals is the host's",
        (("passes/pointwise.py", "*_pow_base, *_round,", "*_pow_base,"),),
        CHAIN,
    ),
    Defect(
        "ops that read what they write into are done in place",
        (("backend.py", "    if keep_what_is_read(graph):", "    if False:"),),
        ("tests/passes/test_in_place.py",),
    ),
    Defect(
        "cache keys ignore the options",
        (("backend.py", "{fingerprint()}-{parsed.on_unsupported}-{parsed.dropout}-", "{fingerprint()}-"),),
        ("tests/test_verify.py", "-k", "caches_see"),
    ),
    Defect(
        "cache keys ignore our source",
        (("backend.py", 'key=f"{fingerprint()}-', 'key=f"-'),),
        ("tests/test_verify.py", "-k", "caches_see"),
    ),
    Defect(
        "ops nobody knows are let through",
        (("verify.py", "        return ORDER_FREE\n    return LEFT_ALONE", "        return ORDER_FREE\n    return ORDER_FREE"),),
        ("tests/test_verify.py", "-k", "refused_by_name"),
    ),
    Defect(
        "ops that mix samples are let through",
        (("verify.py", "if finding is not None and finding.mixes:", "if finding is None and finding.mixes:"),),
        ("tests/test_verify.py", "-k", "mixing"),
    ),
    Defect(
        "isolated ops run on the whole batch",
        (("templates/isolation/contract.py", "or samples == 0 or", "or samples >= 0 or"),
         ("templates/isolation/oracle.py", "    if samples == 0:\n", "    if samples >= 0:\n")),
        ("tests/templates/test_isolation.py",),
    ),
    Defect(
        "a constant of the trees changes",
        (("numerics.py", "REDUCTION_LANES = 32", "REDUCTION_LANES = 64"),),
        ("tests/templates/test_reduction.py", "-k", "golden"),
    ),
    Defect(
        "the number of samples is an argument like any other",
        (("analysis/counts.py", "if numbers and name not in _SIZES", "if numbers and name == 'beta' and name not in _SIZES"),),
        ("tests/test_size_in_numbers.py", "-k", "argument"),
    ),
    Defect(
        "the number of samples may be the size of any dim",
        (("analysis/counts.py", "if dims and not any(", "if dims == [0] and not any("),),
        ("tests/test_size_in_numbers.py", "-k", "argument"),
    ),
    Defect(
        "the number of samples may choose weights",
        (("analysis/constants.py", 'weight = stand_ins and (node.op == "get_attr"', 'weight = False and (node.op == "get_attr"'),),
        ("tests/test_size_in_numbers.py", "-k", "weights"),
    ),
    Defect(
        "weights may tell the places of a batch of a fixed size apart",
        (("analysis/constants.py", "value = self._at(node, samples, stand_ins=True)",
          "value = self._at(node, samples, stand_ins=False)"),),
        ("tests/test_size_in_numbers.py", "-k", "fixed_size"),
    ),
    Defect(
        "graphs end untold",
        (("dynamo.py", "    if not meant:", "    if found.library:"),),
        ("tests/test_graph_breaks.py",),
    ),
    Defect(
        "a size that a loop found to be one number is any number",
        (("dynamo_sizes.py", "return node.expr if _free_symbols(node.expr) else node._expr", "return node.expr"),),
        ("tests/test_batch_size.py", "-k", "taken_out"),
    ),
    Defect(
        "graphs of which something is told come back from the cache",
        (("inductor.py", "if not _told.get():", "if True:"),),
        ("tests/test_unknown_batch.py",),
    ),
    Defect(
        "the memory of a living result is given out again",
        (("templates/isolation/kept.h", "kept_.erase(found);", ""),),
        ("tests/templates/test_isolation.py", "-k", "memory or tensor"),
    ),
)  # fmt: skip


def caught(defect: Defect | None, tests: tuple[str, ...], folder: Path) -> bool | None:
    """Whether the tests fail in a copy with the defect; None if they could not run."""
    for part in ("bi_compile", "tests", "examples"):
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for file, old, new in defect.edits if defect else ():
        path = folder / "bi_compile" / file
        text = path.read_text()
        if text.count(old) < 1:
            raise ValueError(f"{file} no longer holds {old!r}")
        path.write_text(text.replace(old, new, 1))
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if run.returncode not in (0, 1):
        print(run.stdout[-2000:] + run.stderr[-2000:], file=sys.stderr)
        return None
    return run.returncode == 1


def main(words: list[str]) -> int:
    chosen = [
        defect
        for defect in DEFECTS
        if not words or any(word in defect.name + defect.edits[0][0] for word in words)
    ]
    failed = 0
    scratch = Path(os.environ.get("MUTATION_FOLDER", ROOT / "out" / "mutation")).resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    for file in dict.fromkeys(defect.tests[0] for defect in chosen):
        words = " or ".join({" ".join(d.tests[2:]) for d in chosen if d.tests[0] == file})
        if caught(None, (file, "-k", words) if words else (file,), scratch) is not False:
            raise SystemExit(f"without a defect {file} -k {words!r} does not pass")
    print("| defect | where | caught |\n| --- | --- | --- |", flush=True)
    for defect in chosen:
        result = caught(defect, defect.tests, scratch)
        failed += result is not True
        shown = {True: "yes", False: "NO", None: "could not run"}[result]
        print(f"| {defect.name} | `{defect.edits[0][0]}` | {shown} |", flush=True)
    print(f"\n{len(chosen) - failed} of {len(chosen)} caught")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
