"""What files tell of a run in modelspec's fields."""

from __future__ import annotations

import pytest

from sfumato.checkpoints.modelspec import Kind
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.output.metadata import MetadataConfig
from sfumato.config.run.output.saving import SavingConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.training.trainables.files import description

SECTIONS = (MetadataConfig(), SavingConfig(), ImageConfig(), NoiseConfig(), ModelConfig())
GENERATIVE_MODELS = "https://github.com/Stability-AI/generative-models"


@pytest.mark.parametrize(
    ("make", "kind", "implementation"),
    [
        (SdFamily, "checkpoint", GENERATIVE_MODELS),
        (SdFamily, "lora", "diffusers"),
        (SdxlFamily, "checkpoint", GENERATIVE_MODELS),
        (SdxlFamily, "lora", GENERATIVE_MODELS),
    ],
)
def test_only_adapters_of_stable_diffusion_1_and_2_follow_diffusers(
    make: type[SdFamily | SdxlFamily], kind: Kind, implementation: str
) -> None:
    told = description(Run("", "", SECTIONS), make(path=None), kind)
    assert told["modelspec.implementation"] == implementation


@pytest.mark.parametrize(("clip_skip", "layer"), [(2, "2"), (None, None)])
def test_a_clip_skip_is_told_as_the_encoders_layer(clip_skip: int | None, layer: str | None) -> None:
    run = Run("", "", (*SECTIONS, ModelConfig(clip_skip=clip_skip)))
    assert description(run, SdFamily(path=None), "lora").get("modelspec.encoder_layer") == layer
