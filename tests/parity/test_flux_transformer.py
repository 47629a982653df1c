"""Our transformer equals diffusers' FluxTransformer2DModel on the same weights."""

import pytest
import torch
from diffusers import FluxTransformer2DModel

from sfumato.models.families.flux.keys import table_for
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.families.flux.packing import image_ids

SHAPE = {"in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 32}
WIDTHS = {"num_attention_heads": 2, "joint_attention_dim": 24, "pooled_projection_dim": 20}


def pair(guidance: bool) -> tuple[Flux, FluxTransformer2DModel]:
    torch.manual_seed(0)
    theirs = FluxTransformer2DModel(
        **SHAPE, **WIDTHS, guidance_embeds=guidance, axes_dims_rope=(4, 14, 14), patch_size=1
    )
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 and len(parameter) == 32 else 0.0, 0.15)
    tensors = theirs.state_dict()
    table = table_for(tensors)
    own = {key: source.join(tensors.__getitem__) for key, source in table.items()}
    ours = Flux(FluxShape.of({key: tuple(value.shape) for key, value in own.items()}))
    ours.load_state_dict(own)
    return ours, theirs


@pytest.mark.parametrize("guidance", [True, False], ids=["dev", "schnell"])
@pytest.mark.parametrize("size", [(4, 6), (10, 4)])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_output_and_gradients_equal_those_of_diffusers(
    guidance: bool, size: tuple[int, int], masked: bool
) -> None:
    ours, theirs = pair(guidance)
    rng = torch.Generator().manual_seed(1)
    height, width = size
    tokens, length = height * width // 4, 7
    img = torch.randn(2, tokens, 16, generator=rng)
    txt = torch.randn(2, length, 24, generator=rng)
    pooled = torch.randn(2, 20, generator=rng)
    times = torch.tensor([0.2, 0.95])
    scale = torch.tensor([3.5, 1.0]) if guidance else None
    mask = torch.tensor([[1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0]]) if masked else None
    ids = image_ids(2, height, width, img.device)

    out = ours(img, ids, txt, torch.zeros(2, length, 3), times, pooled, scale, mask)
    extra = {}
    if mask is not None:
        keys = torch.cat((mask.bool(), torch.ones(2, tokens, dtype=torch.bool)), dim=1)
        extra["joint_attention_kwargs"] = {"attention_mask": keys[:, None, None]}
    expected = theirs(
        img, txt, pooled, times, ids[0], torch.zeros(length, 3), scale, return_dict=False, **extra
    )[0]
    assert relative(out, expected) < 1e-5

    target = torch.randn(out.shape, generator=rng)
    (out - target).square().mean().backward()
    (expected - target).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    table = table_for(gradients)
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, table[name].join(gradients.__getitem__)) < 1e-4, name


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
