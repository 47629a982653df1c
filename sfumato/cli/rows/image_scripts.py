"""The scripts that make images of prompt lines, with whatever model their file holds."""

from collections.abc import Mapping

from sfumato.config.rules.effects import OWN_ATTENTION
from sfumato.config.run.console import ConsoleConfig
from sfumato.config.run.image_scripts.control import ControlConfig
from sfumato.config.run.image_scripts.hires import HighresFixConfig
from sfumato.config.run.image_scripts.image_files import ImageFileConfig
from sfumato.config.run.image_scripts.minimal import AdapterViewConfig, MinimalConfig
from sfumato.config.run.image_scripts.networks import ImageNetworkConfig
from sfumato.config.run.image_scripts.picture_guidance import PictureGuidanceConfig
from sfumato.config.run.image_scripts.prompts import PromptSourceConfig
from sfumato.config.run.image_scripts.sizes import SizeConfig
from sfumato.config.run.image_scripts.small_latents import SmallLatentsConfig
from sfumato.config.run.image_scripts.speed import SpeedConfig
from sfumato.config.run.image_scripts.start_images import StartImageConfig
from sfumato.config.run.image_scripts.steps import StartNoiseConfig, StepConfig
from sfumato.config.run.image_scripts.texts import EmbeddingConfig, PromptTextConfig
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.scripts.script import Script, names
from sfumato.models.components.stable_diffusion.checkpoint_options import CheckpointOptions
from sfumato.models.families.sdxl.options import RULES as SECOND_PROMPT
from sfumato.models.families.sdxl.options import SecondPromptOptions

_SECTIONS = (
    *(ConsoleConfig, CheckpointOptions, HubAccessConfig, PromptSourceConfig, StartImageConfig),
    *(ImageFileConfig, SizeConfig, StepConfig, SpeedConfig, ImageNetworkConfig, PartialUseConfig),
    *(EmbeddingConfig, PromptTextConfig, HighresFixConfig, ControlConfig, SmallLatentsConfig),
)
_NEWER = names("zero_terminal_snr force_scheduler_zero_steps_offset")
_NOT_BUILT = names("control_net_lllite_models clip_vision_strength")
_NOT_BUILT_FOR_DIFFUSERS = names(
    "control_net_models clip_guidance_scale clip_image_guidance_scale vgg16_guidance_scale"
)
_NO_CHECKPOINT = names("v1 v2 v_parameterization ckpt vae tokenizer_cache_dir")
_WITHOUT_EFFECT: Mapping[str, str] = {
    "xformers": OWN_ATTENTION["xformers"],
    "diffusers_xformers": OWN_ATTENTION["xformers"],
    "sdpa": "attention always runs in PyTorch's scaled_dot_product_attention",
}

IMAGE_SCRIPTS: tuple[Script, ...] = (
    Script(
        name="gen_img",
        summary="Make images of prompt lines with Stable Diffusion 1, 2 or XL.",
        command="prompted images",
        sections=(*_SECTIONS, StartNoiseConfig),
        absent=names("XTI_embeddings control_net_weights"),
        unsupported=_NOT_BUILT | names("control_net_models"),
        without_effect=_WITHOUT_EFFECT,
    ),
    Script(
        name="sdxl_gen_img",
        summary="Make images of prompt lines with SDXL, with the seeds of this older script.",
        command="prompted images, seeds ahead",
        sections=_SECTIONS,
        absent=names("XTI_embeddings control_net_weights v1 v2 v_parameterization sdxl from_module")
        | names("prompter_module_args shuffle_prompts emb_normalize_mode control_net_models")
        | names("control_net_preps")
        | _NEWER,
        unsupported=_NOT_BUILT,
        without_effect=_WITHOUT_EFFECT,
    ),
    Script(
        name="gen_img_diffusers",
        summary="Make images of prompt lines, guided by CLIP or VGG if need be.",
        command="prompted images, seeds ahead",
        sections=(*_SECTIONS, PictureGuidanceConfig),
        absent=names("v1 sdxl from_module prompter_module_args no_half_vae emb_normalize_mode")
        | names("original_width original_height original_width_negative original_height_negative")
        | names("crop_top crop_left control_net_lllite_models control_net_multipliers clip_vision_strength")
        | _NEWER,
        unsupported=_NOT_BUILT_FOR_DIFFUSERS,
        without_effect=_WITHOUT_EFFECT,
    ),
    Script(
        name="sdxl_minimal_inference",
        summary="Make an image with SDXL and any number of LoRAs.",
        command="minimal image",
        sections=(MinimalConfig, SecondPromptOptions, CheckpointOptions, HubAccessConfig, PartialUseConfig),
        absent=names("image mask width height steps guidance_scale seed sdxl") | _NO_CHECKPOINT,
        overrides={"prompt": "A photo of a cat"},
        rules=SECOND_PROMPT,
    ),
    Script(
        name="inpainting_minimal_inference",
        summary="Repaint a part of an image with an inpainting model and any number of LoRAs.",
        command="minimal image",
        sections=(MinimalConfig, CheckpointOptions, HubAccessConfig, PartialUseConfig),
        absent=names("interactive") | _NO_CHECKPOINT,
        overrides={"width": 512, "height": 512, "steps": 30, "guidance_scale": 7.5},
    ),
    Script(
        name="networks/lora_diffusers",
        summary="Show what a LoRA changes: images without it, with it, and merged.",
        command="adapter views",
        sections=(AdapterViewConfig, CheckpointOptions, HubAccessConfig, PartialUseConfig),
        absent=_NO_CHECKPOINT,
    ),
)
"""The older ones draw other seeds; what makes the images is the same."""
