"""Products and what follows on them, joined and apart, against torch.compile on a CUDA device, in bf16.

`python benchmarks/gpu_epilogue.py`: 4 minutes, with words behind it the cases named so. Tokens are routed to
experts at random. "gated" is silu(gate(x)) * up(x), two products, "halves" the same with one weight for both.
"""

import copy
import sys

import torch
import torch.nn.functional as F
from gpu_timing import in_turns, machine
from torch import nn

from bi_compile.passes import epilogue

ROWS = (1, 16, 256, 4096)


class Layer(nn.Module):
    """One or two products of `width` columns."""

    def __init__(self, kind: str, width: int, columns: int) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(width, columns, bias=kind not in ("gated", "halves"))
        self.second = nn.Linear(width, columns, bias=False) if kind == "gated" else None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        if self.kind == "halves":
            return of_halves(first)
        if self.second is not None:
            return F.silu(first) * self.second(x)
        return first + y if self.kind == "sum" else getattr(F, self.kind)(first)

    def inputs(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        columns, width = self.first.weight.shape
        return random(rows, width), random(rows, columns)


class Experts(nn.Module):
    """Products of rows that are sorted by their expert, with a weight for each expert."""

    def __init__(self, kind: str, experts: int, chosen: int, width: int, columns: int) -> None:
        super().__init__()
        self.kind, self.chosen = kind, chosen
        self.first = nn.Parameter(random(experts, columns, width) / 32)
        self.second = nn.Parameter(random(experts, columns, width) / 32) if kind == "gated" else None

    def forward(self, x: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        first = torch._grouped_mm(x, self.first.mT, offs=ends)
        if self.kind == "halves":
            return of_halves(first)
        if self.second is not None:
            return F.silu(first) * torch._grouped_mm(x, self.second.mT, offs=ends)
        return F.relu(first).square()

    def inputs(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        experts, _, width = self.first.shape
        routed = torch.rand(rows, experts, device="cuda").topk(self.chosen).indices.flatten()
        ends = torch.bincount(routed, minlength=experts).cumsum(0).int()
        return random(rows * self.chosen, width), ends


def of_halves(product: torch.Tensor) -> torch.Tensor:
    gate, up = product.chunk(2, dim=-1)
    return F.silu(gate) * up


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


CASES = {
    "BERT-large, gelu": (Layer, "gelu", 1024, 4096),
    "OPT-6.7B, relu": (Layer, "relu", 4096, 16384),
    "Llama-3-8B, gated": (Layer, "gated", 4096, 14336),
    "BERT-large, sum": (Layer, "sum", 4096, 1024),
    "Qwen3-0.6B, halves": (Layer, "halves", 1024, 6144),
    "Llama-3-8B, halves": (Layer, "halves", 4096, 28672),
    "128 experts, gated": (Experts, "gated", 128, 8, 2048, 768),
    "8 experts, gated": (Experts, "gated", 8, 2, 4096, 14336),
    "128 experts, halves": (Experts, "halves", 128, 8, 2048, 1536),
    "8 experts, halves": (Experts, "halves", 8, 2, 4096, 28672),
    "128 experts, relu squared": (Experts, "relu squared", 128, 6, 2688, 1856),
}


def compiled(layer: Layer | Experts, devices: tuple[str, ...]):
    """By our backend, joined on these devices.

    Neither a cache nor what Dynamo has of another layer may serve: hence the options, others for each form.
    """
    options = {"on_unsupported": "warn" if devices else "ignore"}
    run = torch.compile(layer, backend="batch_invariant", options=options)

    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        epilogue._DEVICES = devices  # at every call, for any may compile
        return run(x, y)

    call(*layer.inputs(8))
    return call


@torch.no_grad()
def main() -> None:
    print(machine())
    print(
        f"{'layer':26} {'rows':>5} {'joined us':>10} {'apart us':>9} {'stock us':>9} "
        f"{'joined / apart':>15} {'joined / stock':>15}"
    )
    for name, (kind, *sizes) in CASES.items():
        if not all(word in name for word in sys.argv[1:]):
            continue
        torch.compiler.reset()
        layer = kind(*sizes).to("cuda", torch.bfloat16).requires_grad_(False)
        alone, other = (copy.deepcopy(layer) for _ in range(2))
        joined = compiled(layer, ("cuda",))
        apart = compiled(alone, ())
        stock = torch.compile(other, dynamic=False)
        for rows in ROWS:
            x, y = layer.inputs(rows)
            assert torch.equal(joined(x, y), apart(x, y))
            calls = [lambda f=f, x=x, y=y: f(x, y) for f in (joined, apart, stock)]
            a, b, c = (sorted(times)[1] for times in in_turns(*calls))
            print(f"{name:26} {rows:5} {a:10.1f} {b:9.1f} {c:9.1f} {a / b:15.2f} {a / c:15.2f}", flush=True)


if __name__ == "__main__":
    main()
