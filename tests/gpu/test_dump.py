"""The dump of a graph on a CUDA device names the order of its products."""

import torch

from bi_compile.backend import batch_invariant


def test_the_dump_has_the_certificates(tmp_path):
    model = torch.nn.Linear(8192, 64, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    options = {"dump": str(tmp_path)}
    torch.compile(lambda x: model(x), backend=batch_invariant, options=options)(
        torch.randn(3, 8192, device="cuda", dtype=torch.bfloat16)
    )
    (found,) = (tmp_path / "000").glob("*_orders.txt")
    assert "bf16(sum[4096 of K](0; chain16[4096](0; a*b))) by bf16 k16" in found.read_text()
