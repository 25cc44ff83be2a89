"""What mixes the samples of a batch by definition must never be reported invariant."""

import pytest
import torch
import transformers
from torch import nn
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from bi_compile.testing import BatchVarianceError, assert_batch_invariant
from tests.architectures.check import BACKEND
from tests.architectures.zoo.architecture import ENCODER

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))


def per_tensor_quantised(x):
    scale = x.abs().amax() / 127
    return (x / scale).round().clamp(-127, 127) * scale


CONTROLS = {
    "batch norm in training": nn.Sequential(nn.Unflatten(1, (4, 2)), nn.BatchNorm1d(4)).train(),
    "softmax over the batch": lambda x: x + x.softmax(0),
    "quantisation by the largest of the batch": per_tensor_quantised,
    "mean over the batch": lambda x: 3 * x - x.mean(0),
}


@pytest.mark.parametrize("name", CONTROLS)
@torch.no_grad()
def test_is_caught(name):
    torch.compiler.reset()
    compiled = torch.compile(CONTROLS[name], backend=BACKEND)
    with pytest.raises(Exception) as caught:  # noqa: PT011  (a refusal is wrapped by Dynamo)
        assert_batch_invariant(compiled, X, trials=1, neighbours=())
    refused = "BatchMixing" in str(caught.value) or "UnsupportedOpError" in str(caught.value)
    assert refused or isinstance(caught.value, BatchVarianceError)


@torch.no_grad()
def test_an_attention_that_scales_by_the_largest_of_the_batch_is_refused_by_name():
    """Nystromformer as transformers initialises it: one coefficient of its inverse for the whole batch."""
    torch.compiler.reset()
    torch.manual_seed(0)
    settings = {**ENCODER, "num_landmarks": 4, "segment_means_seq_len": 16, "max_position_embeddings": 16}
    # The whole model of this version gives its landmarks a mask of another shape.
    layer = NystromformerSelfAttention(transformers.NystromformerConfig(**settings)).eval()
    layer.requires_grad_(False)
    compiled = torch.compile(lambda x: layer(x)[0], backend=BACKEND)
    with pytest.raises(Exception, match=r"BatchMixingError: bi_compile\.amax mixes the samples of a batch"):
        compiled(torch.randn(6, 16, 60))
