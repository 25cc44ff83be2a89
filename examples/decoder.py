"""A small decoder language model in plain PyTorch, trained on Python's documentation strings in minutes."""

import ast
import hashlib
import inspect
import math
import sysconfig
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

Cache = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values [rows, kv_heads, context, head] of each layer."""


@dataclass(frozen=True)
class Sizes:
    """Of the model and of its training. Tokens are characters of ASCII."""

    vocabulary: int = 128
    width: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    hidden: int = 320
    context: int = 256
    steps: int = 500
    batch: int = 8


class Linear(nn.Linear):
    """Without bias. Sums in fp32 and rounds to the dtype of x, as GPUs do.

    So stock PyTorch's order of addition depends on the batch on every CPU: on some it has one order for
    products of fp16 and bf16.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x):
        return F.linear(x.float(), self.weight.float()).to(x.dtype)


class Layer(nn.Module):
    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.heads, self.kv_heads = sizes.heads, sizes.kv_heads
        self.head = sizes.width // sizes.heads
        self.before_attention = nn.RMSNorm(sizes.width)
        self.qkv = Linear(sizes.width, (sizes.heads + 2 * sizes.kv_heads) * self.head)
        self.out = Linear(sizes.width, sizes.width)
        self.before_feed = nn.RMSNorm(sizes.width)
        self.gate_up = Linear(sizes.width, 2 * sizes.hidden)
        self.down = Linear(sizes.hidden, sizes.width)

    def forward(self, x, turn, positions, mask, cache):
        rows, length, width = x.shape
        parts = [self.heads, self.kv_heads, self.kv_heads]
        qkv = self.qkv(self.before_attention(x)).view(rows, length, -1, self.head).split(parts, dim=2)
        q, k, v = turn(qkv[0]).transpose(1, 2), turn(qkv[1]), qkv[2]
        if cache is None:
            keys, values = k.transpose(1, 2), v.transpose(1, 2)
        else:
            keys, values = cache
            row = torch.arange(rows, device=x.device).unsqueeze(1)
            keys[row, :, positions] = k
            values[row, :, positions] = v
        attended = F.scaled_dot_product_attention(
            q, keys, values, attn_mask=mask, is_causal=cache is None, enable_gqa=True
        )
        x = x + self.out(attended.transpose(1, 2).reshape(rows, length, width))
        gate, up = self.gate_up(self.before_feed(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class Decoder(nn.Module):
    """Logits [rows, length, vocabulary] of ids [rows, length].

    With a cache the tokens stand at `positions` [rows, length]: their keys and values are written to it, and
    what it holds up to each is attended to. Without, ids are whole sequences from position 0.
    """

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.embed = nn.Embedding(sizes.vocabulary, sizes.width)
        self.layers = nn.ModuleList(Layer(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.width)
        self.head = Linear(sizes.width, sizes.vocabulary)
        size = sizes.width // sizes.heads
        angles = torch.outer(torch.arange(sizes.context), 10_000 ** (-torch.arange(0, size, 2) / size))
        # No buffers: the rotations stay fp32 whatever the weights are.
        self.cosines, self.sines = angles.cos(), angles.sin()

    def forward(self, ids, positions=None, cache: Cache | None = None):
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        cosine = self.cosines[positions].unsqueeze(2)
        sine = self.sines[positions].unsqueeze(2)

        def turn(x):
            first, second = x.float().chunk(2, dim=-1)
            return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1).to(x.dtype)

        mask = None
        if cache is not None:
            mask = (torch.arange(self.sizes.context, device=ids.device) <= positions.unsqueeze(-1)).unsqueeze(
                1
            )
        x = self.embed(ids)
        for i, layer in enumerate(self.layers):
            x = layer(x, turn, positions, mask, cache[i] if cache is not None else None)
        # Logits in fp32, as servers have them.
        return F.linear(self.norm(x).float(), self.head.weight.float())

    def empty_cache(self, rows: int) -> Cache:
        shape = (rows, self.sizes.kv_heads, self.sizes.context, self.sizes.width // self.sizes.heads)
        dtype = self.embed.weight.dtype
        return [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in self.layers]


def encode(text: str) -> list[int]:
    return [c if c < 128 else ord("?") for c in text.encode("latin-1", "replace")]


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode("latin-1")


def documentation() -> str:
    """The documentation strings of the standard library, one after another."""
    found = []
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in path.parts or "test" in path.parts or "idlelib" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        found += [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n\n".join(text for text in found if text and len(text) > 30)


def train(sizes: Sizes, tick: Callable[[int, float], None]) -> Decoder:
    """The trained model in fp32. tick(step, loss) is called after every step."""
    torch.manual_seed(0)
    text = torch.tensor(encode(documentation()))
    model = Decoder(sizes).train()
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            deep = name.endswith(("out.weight", "down.weight"))
            nn.init.normal_(weight, std=0.02 / (math.sqrt(2 * sizes.layers) if deep else 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.98), weight_decay=0.05)
    for step in range(sizes.steps):
        for group in optimizer.param_groups:
            warm, rest = min(1.0, (step + 1) / 40), math.cos(math.pi / 2 * step / sizes.steps)
            group["lr"] = 4e-3 * warm * rest
        begins = torch.randint(len(text) - sizes.context, (sizes.batch,)).tolist()
        ids = torch.stack([text[b : b + sizes.context] for b in begins])
        logits = model(ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        tick(step + 1, loss.item())
    return model.eval().requires_grad_(False)


def load_or_train(folder: Path, sizes: Sizes, tick: Callable[[int, float], None]) -> Decoder:
    """As `train`, the weights kept in `folder`."""
    key = hashlib.sha256((repr(asdict(sizes)) + inspect.getsource(train)).encode()).hexdigest()[:12]
    path = folder / f"decoder-{key}.pt"
    if path.exists():
        model = Decoder(sizes).eval().requires_grad_(False)
        model.load_state_dict(torch.load(path, weights_only=True))
        return model
    model = train(sizes, tick)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model
