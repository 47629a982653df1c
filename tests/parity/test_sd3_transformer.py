"""Our MMDiT equals diffusers' SD3Transformer2DModel on the same weights, in all three published forms."""

from dataclasses import asdict

import pytest
import torch
from diffusers import SD3Transformer2DModel

from sfumato.models.families.sd3.keys import table_for
from sfumato.models.families.sd3.network import MMDiT, MMDiTShape
from sfumato.models.families.sd3.transformer import folder_settings

WIDTHS = {"hidden_size": 128, "num_heads": 2, "mlp_hidden": 512, "text_width": 24, "pooled_width": 20}
FORMS = {
    "medium": MMDiTShape(**WIDTHS, depth=2, side=8),
    "5-large": MMDiTShape(**WIDTHS, depth=2, side=8, has_qk_norm=True),
    "5-medium": MMDiTShape(**WIDTHS, depth=3, side=12, has_qk_norm=True, dual_blocks=frozenset({0, 1})),
}


def pair(shape: MMDiTShape) -> tuple[MMDiT, SD3Transformer2DModel]:
    torch.manual_seed(0)
    settings = {key: value for key, value in folder_settings(shape).items() if key[0] != "_"}
    theirs = SD3Transformer2DModel(**settings | {"sample_size": 8})
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 and len(parameter) == 64 else 0.0, 0.15)
    tensors = theirs.state_dict()
    own = {key: source.join(tensors.__getitem__) for key, source in table_for(tensors).items()}
    found = MMDiTShape.of({key: tuple(value.shape) for key, value in own.items()})
    assert asdict(found) == asdict(shape)
    ours = MMDiT(found)
    ours.load_state_dict(own)
    return ours, theirs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [(4, 6), (14, 4)])
def test_output_and_gradients_equal_those_of_diffusers(form: str, size: tuple[int, int]) -> None:
    ours, theirs = pair(FORMS[form])
    assert ours.shape.variant == form
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2, 16, *size, generator=rng)
    context = torch.randn(2, 7, 24, generator=rng)
    pooled = torch.randn(2, 20, generator=rng)
    times = torch.tensor([137.5, 950.0])

    out = ours(x, times, context, pooled)
    expected = theirs(x, context, pooled, times, return_dict=False)[0]
    assert relative(out, expected) < 1e-5

    target = torch.randn(out.shape, generator=rng)
    (out - target).square().mean().backward()
    (expected - target).square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    table = table_for(theirs.state_dict())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, table[name].join(gradients.__getitem__)) < 1e-4, name


def test_published_models_have_64_dimensions_in_a_head() -> None:
    large = MMDiTShape(2432, 38, 38)
    assert large.hidden_size // large.num_heads == 64


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()  # 0 / 0 is 0
