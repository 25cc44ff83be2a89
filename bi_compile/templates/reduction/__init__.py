"""Row reductions by one fixed tree: see `contract`."""

from bi_compile.templates.reduction.contract import (
    amax,
    amin,
    argmax,
    argmin,
    logsumexp,
    mean,
    norm,
    prod,
    sum,
    var,
    var_mean,
)

__all__ = [
    "amax",
    "amin",
    "argmax",
    "argmin",
    "logsumexp",
    "mean",
    "norm",
    "prod",
    "sum",
    "var",
    "var_mean",
]
