"""Attention of diffusers' UNets through our own function: the numbers that diffusers' own way has."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0

from sfumato.models.components.unet import unet
from sfumato.models.components.unet.attention import Processor
from sfumato.nn import cpu_attention


@pytest.mark.parametrize("is_cross", [False, True])
def test_a_layer_gives_what_it_gives_with_diffusers_own_processor(is_cross: bool) -> None:
    torch.manual_seed(0)
    layer = Attention(24, cross_attention_dim=10 if is_cross else None, heads=4, dim_head=6)
    hidden, text = torch.randn(2, 9, 24), torch.randn(2, 5, 10) if is_cross else None
    layer.set_processor(AttnProcessor2_0())
    expected = layer(hidden, text)
    layer.set_processor(Processor())
    torch.testing.assert_close(layer(hidden, text), expected, rtol=0, atol=0)


def test_a_mask_is_refused() -> None:
    layer = Attention(8, heads=1, dim_head=8, processor=Processor())
    with pytest.raises(ValueError, match="hides no tokens"):
        layer(torch.randn(1, 3, 8), attention_mask=torch.zeros(1, 1, 3))


def test_a_hastened_unet_predicts_in_bfloat16_what_it_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Size] = []
    products = cpu_attention.attend
    monkeypatch.setattr(cpu_attention, "attend", lambda q, k, v: seen.append(q.shape) or products(q, k, v))
    torch.manual_seed(0)
    shape = unet.UnetShape(4, 4, 1, (32, 64), (1, 0), 1, 16, 0, False)
    model = unet.build(shape).to_empty(device="cpu").requires_grad_(False).eval()
    for name, weight in model.named_parameters():
        is_norm = weight.dim() == 1 and name.endswith("weight")
        weight.fill_(1.0) if is_norm else weight.normal_(0, 0.05)
    model.to(torch.bfloat16)
    given = torch.randn(1, 4, 8, 8), torch.tensor([20.0]), torch.randn(1, 7, 16)
    expected = unet.predict(model, *given)
    unet.hasten(model, torch.bfloat16, torch.device("cpu"))
    found = unet.predict(model, *given)
    assert seen == 3 * [(1, 8, 64, 4)], "self-attention of 64 tokens, in three blocks"
    assert (found - expected).norm() <= 2e-2 * expected.norm()
