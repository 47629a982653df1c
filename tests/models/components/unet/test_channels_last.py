"""Transformers that hand on the layout of their images: diffusers' numbers, and no image turned over."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import Tensor

from sfumato.models.components.unet.channels_last import keep_layout


@pytest.fixture(params=[False, True], ids=["convolutions", "linear"])
def layer(request: pytest.FixtureRequest) -> Transformer2DModel:
    torch.manual_seed(0)
    return Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=8,
        norm_num_groups=4,
        cross_attention_dim=5,
        use_linear_projection=request.param,
    )


def output_and_gradient(layer: Transformer2DModel, x: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(x, encoder_hidden_states=text, attention_mask=None, return_dict=False)[0]
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return output.detach(), torch.autograd.grad((output * weights).sum(), x)[0]


def test_a_transformer_gives_what_it_gives_otherwise_in_the_layout_that_it_gets(
    layer: Transformer2DModel,
) -> None:
    images, text = torch.randn(2, 8, 4, 6), torch.randn(2, 3, 5)
    last = images.to(memory_format=torch.channels_last)
    plain = output_and_gradient(layer, images, text)
    keep_layout(layer)
    found = output_and_gradient(layer, last, text)
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    for one, expected in zip(found, plain, strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)


def test_hooks_on_the_layers_of_a_transformer_still_act(layer: Transformer2DModel) -> None:
    keep_layout(layer)
    seen: list[str] = []
    for name, child in layer.named_children():
        child.register_forward_hook(lambda *_, name=name: seen.append(name))
    layer.transformer_blocks[0].register_forward_hook(lambda *_: seen.append("block"))
    layer(torch.randn(1, 8, 2, 2), encoder_hidden_states=torch.randn(1, 3, 5), return_dict=False)
    assert seen == ["norm", "proj_in", "block", "proj_out"]


def test_a_copy_computes_with_its_own_weights(layer: Transformer2DModel) -> None:
    keep_layout(layer)
    other = copy.deepcopy(layer)
    torch.nn.init.zeros_(other.proj_out.weight)
    torch.nn.init.zeros_(other.proj_out.bias)
    x, text = torch.randn(1, 8, 2, 2), torch.randn(1, 3, 5)
    assert torch.equal(other(x, text, return_dict=False)[0], x)
    assert not torch.equal(layer(x, text, return_dict=False)[0], x)


@pytest.mark.filterwarnings("ignore:.*Transformer2DModelOutput:FutureWarning")
def test_asked_as_elsewhere_a_transformer_answers_as_elsewhere(layer: Transformer2DModel) -> None:
    x, text = torch.randn(1, 8, 2, 2), torch.randn(1, 3, 5)
    expected = layer(x, encoder_hidden_states=text).sample
    keep_layout(layer)
    assert torch.equal(layer(x, encoder_hidden_states=text).sample, expected)


def test_with_a_mask_a_transformer_computes_as_it_was_built(layer: Transformer2DModel) -> None:
    x, text, mask = torch.randn(1, 8, 2, 2), torch.randn(1, 3, 5), torch.tensor([[1, 1, 0]])
    expected = layer(x, text, encoder_attention_mask=mask, return_dict=False)[0]
    keep_layout(layer)
    assert torch.equal(layer(x, text, encoder_attention_mask=mask, return_dict=False)[0], expected)
    assert not torch.allclose(layer(x, text, return_dict=False)[0], expected)
