"""Products and what follows on them, joined and apart, against torch.compile on a CUDA device, in bf16.

`python benchmarks/gpu_epilogue.py`: under 2 minutes. "gated" is silu(gate(x)) * up(x), two products.
"""

import torch
import torch.nn.functional as F
from gpu_timing import in_turns, machine
from torch import nn

from bi_compile.passes import epilogue

ROWS = (16, 256, 4096)


class Layer(nn.Module):
    """One or two products of `width` columns."""

    def __init__(self, kind: str, width: int, columns: int) -> None:
        super().__init__()
        self.kind = kind
        self.first = nn.Linear(width, columns, bias=kind != "gated")
        self.second = nn.Linear(width, columns, bias=False) if kind == "gated" else None

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        first = self.first(x)
        if self.second is not None:
            return F.silu(first) * self.second(x)
        return first + y if self.kind == "sum" else getattr(F, self.kind)(first)


CASES = {
    "BERT-large, gelu": ("gelu", 1024, 4096),
    "OPT-6.7B, relu": ("relu", 4096, 16384),
    "Llama-3-8B, gated": ("gated", 4096, 14336),
    "BERT-large, sum": ("sum", 4096, 1024),
}


def compiled(layer: nn.Module, devices: tuple[str, ...]):
    """By our backend, joined on these devices.

    Neither a cache nor what Dynamo has of another layer may serve: hence the options, others for each form.
    """
    options = {"on_unsupported": "warn" if devices else "ignore"}
    run = torch.compile(layer, backend="batch_invariant", options=options)

    def call(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        epilogue._DEVICES = devices  # at every call, for any may compile
        return run(x, y)

    x, y = (torch.randn(8, n, device="cuda", dtype=torch.bfloat16) for n in layer.first.weight.shape[::-1])
    call(x, y)
    return call


@torch.no_grad()
def main() -> None:
    print(machine())
    print(
        f"{'layer':18} {'rows':>5} {'joined us':>10} {'apart us':>9} {'stock us':>9} "
        f"{'joined / apart':>15} {'joined / stock':>15}"
    )
    for name, (kind, width, columns) in CASES.items():
        torch.compiler.reset()
        layer = Layer(kind, width, columns).to("cuda", torch.bfloat16).requires_grad_(False)
        alone, other = (Layer(kind, width, columns).to("cuda", torch.bfloat16) for _ in range(2))
        for copy in (alone, other):
            copy.load_state_dict(layer.state_dict())
            copy.requires_grad_(False)
        joined = compiled(layer, ("cuda",))
        apart = compiled(alone, ())
        stock = torch.compile(other, dynamic=False)
        for rows in ROWS:
            x, y = (torch.randn(rows, n, device="cuda", dtype=torch.bfloat16) for n in (width, columns))
            assert torch.equal(joined(x, y), apart(x, y))
            calls = [lambda f=f, x=x, y=y: f(x, y) for f in (joined, apart, stock)]
            a, b, c = (sorted(times)[1] for times in in_turns(*calls))
            print(f"{name:18} {rows:5} {a:10.1f} {b:9.1f} {c:9.1f} {a / b:15.2f} {a / c:15.2f}", flush=True)


if __name__ == "__main__":
    main()
