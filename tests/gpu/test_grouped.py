"""Grouped products on a CUDA device: every row has the bits of `linear` with the weight of its group."""

from collections.abc import Callable

import pytest
import torch

import bi_compile
from tests.bits import assert_same_bits, order_sensitive, same_bits

if torch.cuda.is_available():
    from bi_compile.templates import contraction
    from bi_compile.templates.contraction import gpu_configs, gpu_grouped
    from bi_compile.templates.gpu import device

bi = torch.ops.bi_compile
BF16, FP16, FP32, FP64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
EACH_DTYPE = pytest.mark.parametrize("dtype", [BF16, FP16, FP32, FP64], ids=str)
# Empty groups, one row, more than a tile, and 6 rows behind the last.
ENDS = [0, 1, 1, 150, 187, 190]
ROWS = 196


def data(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    x = order_sensitive(*shape, dtype=FP32, generator=torch.Generator().manual_seed(seed))
    return (x / 32).to(dtype).cuda()  # in fp16 sums stay finite


def ends(values: list[int]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def experts(k: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    """[groups, k, n] as transformers hands them over: k side by side."""
    return data(len(ENDS), n, k, dtype=dtype, seed=1).mT


def by_group(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    parts = [bi.linear(a[begin:end], w.t(), None) for w, begin, end in zip(b, [0, *ENDS], ENDS, strict=False)]
    return torch.cat([*parts, a.new_zeros(ROWS - ENDS[-1], b.shape[-1])])


@EACH_DTYPE
@pytest.mark.parametrize("k", [136, 4616], ids=["one chunk", "chunks"])
def test_a_row_is_linear_with_its_experts_weight(dtype, k):
    a, b = data(ROWS, k, dtype=dtype), experts(k, 200, dtype)
    expected = by_group(a, b)
    for weights in (b, b.contiguous(), b[:, :, ::1].clone()):
        assert_same_bits(bi.grouped_mm(a, weights, ends(ENDS)), expected, f"{weights.stride()}")
    assert_same_bits(bi.grouped_mm(a, b, ends(ENDS).long()), expected, "int64")
    if dtype != FP64:
        here = device.processor(torch.cuda.current_device())
        shipped = {p.config for both in (True, False) for p in gpu_configs.candidates(here, dtype, both)}
        for config in (c for c in shipped if not c.wide):
            for weights in (b, b.contiguous()):
                found = gpu_grouped.grouped_mm(a, weights, ends(ENDS), config=config)
                assert_same_bits(found, expected, f"{config} {weights.stride()}")


@EACH_DTYPE
def test_columns_and_the_summed_dim(dtype):
    a, b = data(len(ENDS), 70, 328, dtype=dtype), data(ROWS, 328, dtype=dtype, seed=1).t()
    found, begin = bi.grouped_mm(a, b, ends(ENDS)), 0
    for group, end in enumerate(ENDS):
        assert_same_bits(found[:, begin:end], bi.mm(a[group], b[:, begin:end]), f"columns of {group}")
        begin = end
    assert not found[:, begin:].any()
    a, b = data(ROWS, 70, dtype=dtype).t(), data(ROWS, 72, dtype=dtype, seed=1)
    found, begin = bi.grouped_mm(a, b, ends(ENDS)), 0
    for group, end in enumerate(ENDS):
        assert_same_bits(found[group], bi.mm(a[:, begin:end], b[begin:end]), f"sums of {group}")
        begin = end


@EACH_DTYPE
def test_a_row_does_not_see_the_batch(dtype):
    a, b = data(ROWS, 2056, dtype=dtype), experts(2056, 136, dtype)
    whole = bi.grouped_mm(a, b, ends(ENDS))
    for row in (0, 1, 149, 160, 189):
        group = sum(end <= row for end in ENDS)
        for size, value in ((1, 0.0), (2, torch.nan), (7, torch.inf), (33, 3e4), (300, torch.nan)):
            x = torch.full((size, 2056), value, dtype=dtype, device="cuda")
            x[size // 2] = a[row]
            routed = ends([0] * group + [size] * (len(ENDS) - group))
            assert_same_bits(bi.grouped_mm(x, b, routed)[size // 2], whole[row], f"{row} among {size}")
        routed = ends([min(1, max(0, i - group + 1)) for i in range(len(ENDS))])
        assert_same_bits(bi.grouped_mm(a[row : row + 1], b, routed)[0], whole[row], f"{row} alone")
    # Other experts' weights do not show.
    bad = b.clone()
    bad[[0, 2, 4]] = torch.nan
    assert_same_bits(bi.grouped_mm(a, bad, ends(ENDS))[1:150], whole[1:150], "neighbours")


def test_stock_pytorch_fails_the_same_check():
    differ = 0
    for dtype in (BF16, FP32):
        for k, n in ((2056, 136), (4096, 1024), (14336, 512)):
            a, w = data(300, k, dtype=dtype), data(n, k, dtype=dtype, seed=1).t()
            expert = a @ w
            differ += not all(same_bits(a[:size] @ w, expert[:size]) for size in (1, 2, 7, 33))
    assert differ > 0


@EACH_DTYPE
def test_as_near_to_the_truth_as_stock(dtype):
    a, b = torch.randn(ROWS, 520, device="cuda").to(dtype), torch.randn(6, 520, 72, device="cuda").to(dtype)

    def all_groups(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return torch.cat([x[i:j] @ w for w, i, j in zip(weights, [0, *ENDS], ENDS, strict=False)])

    truth = all_groups(a.double().cpu(), b.double().cpu())

    def error(found: torch.Tensor) -> float:
        return float((found.double().cpu() - truth).square().mean().sqrt() / truth.square().mean().sqrt())

    ours, stock = error(bi.grouped_mm(a, b, ends(ENDS))[: ENDS[-1]]), error(all_groups(a, b))
    assert ours <= 1.5 * stock + torch.finfo(dtype).eps * (16 if dtype == FP64 else 1)


def test_nothing_waits_for_the_device():
    a, b, routed = data(ROWS, 520, dtype=BF16), experts(520, 72, BF16), ends(ENDS)
    expected = bi.grouped_mm(a, b, routed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        bi.grouped_mm(a, b, routed)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = bi.grouped_mm(a, b, routed)
    others = ends([30, 40, 50, 60, 70, 196])
    for values in (others, ends(ENDS)):
        routed.copy_(values)
        graph.replay()
        assert_same_bits(found, bi.grouped_mm(a, b, values.clone()), "replay")
    assert_same_bits(found, expected, "replay")


class Experts(torch.nn.Module):
    """The first projection of every token's own expert."""

    def __init__(self, grouped: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.grouped = grouped
        self.weight = torch.nn.Parameter(torch.randn(4, 96, 64) / 8)

    def forward(self, x, chosen):
        order = chosen.argsort(stable=True)
        routed = torch.bincount(chosen, minlength=4)[:4].cumsum(0).int()
        found = self.grouped(x[order], self.weight.mT, offs=routed)
        return torch.zeros_like(found).index_copy(0, order, found)


def test_compiled_with_gradients_and_in_eager():
    torch.compiler.reset()
    model = Experts(torch.nn.functional.grouped_mm).cuda().to(BF16)
    x = torch.randn(33, 64, device="cuda", dtype=BF16)
    chosen = torch.randint(0, 4, (33,), device="cuda")
    with bi_compile.eager():
        whole = model(x, chosen)
        for size in (1, 2, 7):
            assert_same_bits(model(x[:size], chosen[:size]), whole[:size], f"{size}")
    grad = torch.randn_like(whole)
    alone, among = x[3:4].clone().requires_grad_(), x.clone().requires_grad_()
    for y, picked, g in ((alone, chosen[3:4], grad[3:4]), (among, chosen, grad)):
        order = picked.argsort(stable=True)
        routed = torch.bincount(picked, minlength=4).cumsum(0).int()
        contraction.grouped_mm(y[order], model.weight.mT, routed).backward(g[order])
    assert_same_bits(alone.grad[0], among.grad[3], "gradient")
