"""The sections that all scripts which make images share."""

from dataclasses import fields

from sfumato.config.run.composition import CompositionConfig
from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.image_series import ImageSeriesConfig
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.model.partial_use import PartialUseConfig

GENERATION: tuple[type, ...] = (
    HubAccessConfig,
    GenerationConfig,
    CompositionConfig,
    ImageSeriesConfig,
    PartialUseConfig,
)

COMPOSITION = frozenset(
    field.name for section in (CompositionConfig, ImageSeriesConfig) for field in fields(section)
)
"""Options that sd-scripts has not in its small scripts."""

UNET_ONLY = frozenset(name for name in COMPOSITION if name.startswith(("deep_shrink", "gradual_latent")))
"""Options of models with a UNet, and of noise levels that are relative to the image."""
