"""The scripts that make images."""

from sfumato.config.run.generation import GenerationConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.scripts.script import Script, names
from sfumato.models.families.flux.options import FluxGenerationOptions

GENERATORS: tuple[Script, ...] = (
    Script(
        name="flux_minimal_inference",
        summary="Make images with FLUX.1 and any number of LoRAs.",
        family="flux",
        command="generate",
        sections=(FluxGenerationOptions, GenerationConfig),
        absent=names("sampler"),
        unsupported=names("model_type"),
    ),
    Script(
        name="generate sd",
        summary="Make images with Stable Diffusion 1 or 2.",
        family="sd",
        command="generate",
        is_drop_in=False,
        sections=(ModelConfig, GenerationConfig),
        absent=names("guidance"),
        overrides={"width": 512, "height": 512, "cfg_scale": 7.5},
    ),
    Script(
        name="generate sdxl",
        summary="Make images with SDXL.",
        family="sdxl",
        command="generate",
        is_drop_in=False,
        sections=(ModelConfig, GenerationConfig),
        absent=names("guidance v2 clip_skip"),
        overrides={"width": 1024, "height": 1024, "cfg_scale": 7.5},
    ),
)
