"""Guidance by models that look at the image while it forms."""

from dataclasses import dataclass

from sfumato.config.rule import given, idle, needs


@dataclass(frozen=True)
class PictureGuidanceConfig:
    """Guidance by CLIP and VGG."""

    clip_guidance_scale: float = 0.0
    """How strongly CLIP leads towards what the prompt says; 0 is off."""

    clip_image_guidance_scale: float = 0.0
    """How strongly CLIP leads towards the guide image; 0 is off."""

    vgg16_guidance_scale: float = 0.0
    """How strongly VGG16's features lead towards those of the guide image; 0 is off."""

    vgg16_guidance_layer: int = 20
    """The layer of VGG16 whose features are compared."""


RULES = (
    needs(["clip_image_guidance_scale", "vgg16_guidance_scale"], given("guide_image_path")),
    idle(["vgg16_guidance_layer"], given("vgg16_guidance_scale")),
)
"""What these options mean to others."""
