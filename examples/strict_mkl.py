"""Stock eager PyTorch in a process of its own, whose MKL was told to be reproducible before it was loaded."""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from unittest import mock

import torch
from minilm import load_embedder

ENVIRONMENT = {
    "MKL_CBWR": "AVX512,STRICT",
    # Its threads shall sleep, not spin, once a batch is done: the arm measured next needs the cores.
    "OMP_WAIT_POLICY": "passive",
}


@contextmanager
def strict_mkl(*, enabled: bool = True) -> Iterator[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]:
    """An embedder like the others, whose batches are computed in the other process."""
    if not enabled:
        yield lambda ids, mask: ids
        return
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, torch.get_num_threads()), daemon=True)
    with mock.patch.dict(os.environ, ENVIRONMENT):
        process.start()

    def embed(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        here.send((ids.numpy(), mask.numpy()))
        return torch.from_numpy(here.recv())

    try:
        yield embed
    finally:
        here.send(None)
        process.join()


def _serve(connection: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    model = load_embedder()
    with torch.inference_mode():
        while (inputs := connection.recv()) is not None:
            connection.send(model(*map(torch.from_numpy, inputs)).numpy())
