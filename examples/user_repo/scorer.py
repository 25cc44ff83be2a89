"""A small model of a project that has nothing else to do with bi_compile."""

import torch


class Scorer(torch.nn.Module):
    """Scores of 10 classes for samples of 301 features each."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(301, 75), torch.nn.GELU())
        self.head = torch.nn.Linear(75, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


class Mixing(Scorer):
    """Broken on purpose: it adds the mean over the batch, so a sample's scores depend on its neighbours."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x + 0.1 * x.mean(0))


def build(kind: type[Scorer] = Scorer) -> Scorer:
    """The same weights in every process."""
    torch.manual_seed(0)
    return kind().eval().requires_grad_(False)
