"""Running sums, products and log-sums of exponentials, each a chain in index order: see `contract`."""

from bi_compile.templates.scan.contract import cumprod, cumsum, logcumsumexp

__all__ = ["cumprod", "cumsum", "logcumsumexp"]
