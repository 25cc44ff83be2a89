"""The dump and the report of a graph on a CUDA device name the order of its sums."""

import json

import torch

import bi_compile
from bi_compile.backend import batch_invariant


def test_the_dump_has_the_certificates(tmp_path):
    model = torch.nn.Linear(8192, 64, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    options = {"dump": str(tmp_path)}
    torch.compile(lambda x: model(x), backend=batch_invariant, options=options)(
        torch.randn(3, 8192, device="cuda", dtype=torch.bfloat16)
    )
    (found,) = (tmp_path / "000").glob("*_orders.txt")
    assert "bf16(sum[4096 of K](0; chain16[4096](0; a*b))) by bf16 k16" in found.read_text()


def test_the_report_has_the_certificates():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.LayerNorm(64), torch.nn.Softmax(-1))
    report = bi_compile.explain(model.to("cuda", torch.bfloat16))(
        torch.randn(3, 64).to("cuda", torch.bfloat16)
    )
    found = [op["order"] for op in json.loads(report.json())["graphs"][0]["ops"] if op["order"]]
    capability = 10 * torch.cuda.get_device_capability()[0]
    product = "bf16(chain16[K](0; a*b)) by bf16 k16" if capability < 100 else "not certified: "
    assert len(found) == 3
    assert found[0].startswith(product)
    assert found[1:] == ["sums of 2 by scalar instructions"] * 2
