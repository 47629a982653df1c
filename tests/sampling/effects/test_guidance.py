"""Guidance by other networks: distances by hand, gradients that lead where they should."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from sfumato.errors import UserError
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.interface.family import VAE
from sfumato.models.interface.parts import Parts
from sfumato.sampling.effects.clip_vision import clip_vision
from sfumato.sampling.effects.guidance import vgg, vgg_guidance
from sfumato.sampling.effects.guidance.clip import load_eye
from sfumato.sampling.effects.guidance.clip_guidance import closeness, spherical_distance
from sfumato.sampling.effects.guidance.gradient import following, guidance, seen
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from tests import tiny

CPU = torch.device("cpu")


def test_a_step_goes_downhill_by_the_square_of_its_level() -> None:
    """With a denoiser that halves and a decoder that does nothing, the gradient is known."""
    sigma, x = 2.0, torch.full((1, 3, 4, 4), 0.4)
    lead = following(lambda pixels: pixels.square().sum(dim=(1, 2, 3)), lambda latents: latents)
    found = lead(lambda x, _: x / 2)(x, sigma)
    share = math.sqrt(1 - 1 / 5)
    slope = share / 2 + (1 - share) / math.sqrt(5)
    assert float(seen(x / 2, x, sigma)[0, 0, 0, 0]) == pytest.approx(0.4 * slope)
    assert float(found[0, 0, 0, 0]) == pytest.approx(0.2 - sigma**2 * 2 * 0.4 * slope**2)


def test_distance_on_the_sphere_is_half_the_squared_angle() -> None:
    first, second = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 3.0], [5.0, 0.0]])
    assert spherical_distance(first, second).tolist() == pytest.approx([(math.pi / 2) ** 2 / 2, 0.0])


def test_layers_of_vgg_are_counted_as_published(tmp_path: Path) -> None:
    features = vgg.build_features()
    assert len(features) == vgg.NUM_LAYERS
    names = {name: tuple(tensor.shape) for name, tensor in features.state_dict().items()}
    assert len(names) == 26
    assert names["0.weight"] == (64, 3, 3, 3)
    assert names["19.weight"] == names["28.weight"] == (512, 512, 3, 3)
    kept = {f"features.{name}": tensor for name, tensor in vgg.build_features(5).state_dict().items()}
    save_file(kept, tmp_path / "vgg.safetensors")
    loaded = vgg.load_features(tmp_path / "vgg.safetensors", 4)
    assert isinstance(loaded[-1], nn.MaxPool2d)
    with pytest.raises(UserError, match="does not hold the convolutions"):
        vgg.load_features(tmp_path / "vgg.safetensors", 20)
    with pytest.raises(UserError, match="needs the file"):
        vgg.load_features(tmp_path / "none.pth", 20)


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> SdFamily:
    model = tiny.sd(tmp_path_factory.mktemp("sd"))
    return SdFamily(model.path, tokenizers=model.tokenizers)


@pytest.mark.whole_model
def test_images_come_closer_to_what_a_network_wants(family: SdFamily) -> None:
    """Through guidance, autoencoder and UNet, in the pipeline's inference mode."""
    parts = Parts(family, CPU)

    def decode(latents: Tensor) -> Tensor:
        return family.decode_image(parts[VAE], latents)

    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = vgg.build_features(5).requires_grad_(False)
    white = torch.ones(1, 3, 64, 64)
    loss = vgg_guidance.likeness(features, white, scale=1.0)
    effect = guidance(lambda _: vgg_guidance.likeness(features, white, scale=2000.0), decode)
    request = Request("a cat", width=64, height=64, steps=3, seed=3, sampler="ddim", cfg_scale=4.0)
    plain, led = (
        Pipeline(family, parts, dtype=torch.float32, effects=effects) for effects in ((), (effect,))
    )
    far, near = (float(loss(decode(*pipeline.stages([request])))) for pipeline in (plain, led))
    assert near < 0.98 * far


@pytest.mark.whole_model
def test_clip_judges_images_and_takes_the_place_of_a_text(tmp_path: Path, family: SdFamily) -> None:
    config = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=32,
        patch_size=16, projection_dim=8,
    )  # fmt: skip
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path / "clip")
    eye = load_eye(tmp_path / "clip")
    pixels = torch.rand(2, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = eye(pixels[:1])
    assert wanted.shape == (1, 8)
    distances = closeness(eye, wanted, 3.0)(pixels)
    assert float(distances[0]) < 1e-4 < float(distances[1])
    effects = [clip_vision(wanted, 1.0)]
    pipeline = Pipeline(family, Parts(family, CPU), dtype=torch.float32, effects=effects)
    with pytest.raises(UserError, match="told no summary of a text"):
        pipeline(Request("a cat", width=64, height=64, steps=1, sampler="ddim"))
    with pytest.raises(UserError, match=r"no config\.json"):
        load_eye(tmp_path)
