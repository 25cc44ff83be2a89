"""Reports made by hand, one of each kind of trouble, and a large one: no model is compiled for them."""

from bi_compile.report import (
    CANONICAL,
    ISOLATED,
    LEFT_ALONE,
    MIXES,
    ORDER_FREE,
    UNKNOWN,
    Break,
    Graph,
    Input,
    Leak,
    Question,
    Report,
    Verdict,
)


def good() -> Report:
    """x -> linear -> gelu in two ops, and a residual sum."""
    line = "/home/me/model.py:7, in forward:  return x + gelu(self.fc(x))"
    verdicts = [
        Verdict("bi_compile.linear", CANONICAL, line, "linear", ("x_1", "w_1"), "f32[B, 8]"),
        Verdict("aten.erf.default", CANONICAL, line, "erf", ("linear",), "f32[B, 8]", origin="aten.gelu"),
        Verdict("aten.mul.Tensor", ORDER_FREE, line, "mul", ("linear", "erf"), "f32[B, 8]"),
        Verdict("aten.ones.default", ORDER_FREE, None, "ones", (), "f32[]", batched=False),
        Verdict("aten.add.Tensor", ORDER_FREE, line, "add", ("x_1", "mul", "ones"), "f32[B, 8]"),
    ]
    inputs = (Input("x_1", "x", "f32[B, 8]"), Input("w_1", "self.fc.weight", "f32[8, 8]", batched=False))
    return Report("Good", [Graph(verdicts, inputs, ("add",))], 1)


def bad() -> Report:
    """One of each kind, two graphs, a break, a leak, a question; names that HTML must not trip over."""
    line = "/home/me/model.py:9, in forward:  y = x.cumsum(0) if a < b else '</script><!--title-->'"
    verdicts = [
        Verdict("bi_compile.mm", CANONICAL, line, "mm", ("x_1",), "f32[B, 8]"),
        Verdict("aten.x.default", ISOLATED, line, "x", ("mm",), "f32[B, 8]", reason="no template"),
        Verdict("aten.m.dim", MIXES, line, "m", ("x",), "f32[8]", reason="a & b <i>", path=("x_1", "x")),
        Verdict("aten.u.default", UNKNOWN, line, "u", ("mm",), "f32[B, 8]", reason="no rule", path=("mm",)),
        Verdict("aten.cumsum.default", LEFT_ALONE, line, "cumsum", ("u",), "f32[B, 8]"),
    ]
    first = Graph(verdicts, (Input("x_1", "x", "f32[B, 8]"),), ("x", "m", "cumsum"))
    second = Graph([Verdict("aten.add.Tensor", ORDER_FREE, None, "add", (), "f32[B]")], (), ("add",), True)
    report = Report("<b>Bad</b>", [first, second], 2)
    report.breaks.append(Break("call of print", line))
    report.questions.append(Question("B < 4", True, line))
    report.leaks.append(Leak("skipped frame", "nn.LSTM ran as stock PyTorch"))
    return report


def large(blocks: int = 250) -> Report:
    """8 ops a block: a chain with a branch and two residual sums, as in a transformer, and a shared mask."""
    line = (
        "/home/me/somewhere/models/transformer/modeling.py:{}, in forward:  hidden = self.layer(hidden, mask)"
    )
    verdicts: list[Verdict] = []
    last = "x_1"

    def op(name: str, kind: str, *inputs: str) -> str:
        node = f"{name}_{len(verdicts)}"
        where = line.format(len(verdicts) % 97)
        verdicts.append(Verdict(f"aten.{name}.default", kind, where, node, inputs, "f32[B, 128, 768]"))
        return node

    for _ in range(blocks):
        q, k = op("q", CANONICAL, last, "w_1"), op("k", CANONICAL, last, "w_1")
        mixed = op("attend", CANONICAL, q, k, op("where", ORDER_FREE, "mask_1"))
        middle = op("add", ORDER_FREE, last, mixed)
        up = op("up", CANONICAL, middle, "w_1")
        last = op("add", ORDER_FREE, middle, op("erf", CANONICAL, up))
    inputs = (Input("x_1", "x", "f32[B, 128, 768]"), Input("mask_1", "mask"), Input("w_1", "w", "", False))
    return Report("Large", [Graph(verdicts, inputs, (last,))], 1)
