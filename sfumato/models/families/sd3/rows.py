"""The scripts for Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping

from sfumato.config.rules.effects import (
    ADAPTERS_ALONE,
    ALWAYS_OURS,
    NOT_BUILT_FOR_TRAINING,
    NOT_WITH_FLOW,
    SAFETENSORS_ANYWAY,
    WORDS_ABSENT,
)
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.model.whole_model import WholeModelConfig
from sfumato.config.run.output.saving import MODEL_FORMATS
from sfumato.config.run.training.trained_parts import NEEDS_TRAINED_ENCODERS, TrainedPartsConfig
from sfumato.config.run.training.words import JoinedWordConfig, WordsConfig
from sfumato.config.scripts.generation import COMPOSITION, GENERATION, UNET_ONLY
from sfumato.config.scripts.script import Script, names
from sfumato.config.scripts.sections import DATA, OUTPUT, TRAINING
from sfumato.config.tools.adapter_merging import AdapterMergingConfig, FreeMergeFormatConfig
from sfumato.config.tools.joining import JoiningConfig
from sfumato.models.families.sd3.options import (
    ENCODER_RULES,
    GENERATION_RULES,
    NOISE_RULES,
    Sd3EncoderOptions,
    Sd3GenerationOptions,
    Sd3MergeOptions,
    Sd3NoiseOptions,
    Sd3Options,
    Sd3PartOptions,
)

_WITHOUT_EFFECT: Mapping[str, str] = {
    **NOT_WITH_FLOW,
    **ALWAYS_OURS,
    "max_token_length": "CLIP always reads 77 tokens; --t5xxl_max_token_length sets T5's",
}
_IMPOSSIBLE: Mapping[str, str] = {
    "weighted_captions": "T5 and the pooled vectors of CLIP know no weights of words; leave it out",
    "train_inpainting": "Stable Diffusion 3 is told of no mask; leave it out",
}

ROWS: tuple[Script, ...] = (
    Script(
        name="sd3_train_network",
        summary="Train an adapter (LoRA) for Stable Diffusion 3 and 3.5.",
        family="sd3",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(
            *(*DATA, *TRAINING, Sd3NoiseOptions, NetworkConfig, JoinedWordConfig, PartialUseConfig),
            *(Sd3Options, *OUTPUT),
        ),
        absent=names("split_mode"),
        command_overrides={"network_module": "networks.lora_sd3"},
        unsupported=NOT_BUILT_FOR_TRAINING,
        impossible=_IMPOSSIBLE,
        without_effect={
            **_WITHOUT_EFFECT,
            "no_half_vae": "this autoencoder does not overflow",
            "save_clip": "an adapter's file holds what was trained of text encoders",
            "save_t5xxl": "an adapter's file holds what was trained of text encoders",
        },
        rules=NOISE_RULES,
    ),
    Script(
        name="sd3_train",
        summary="Train whole Stable Diffusion 3 and 3.5, with text encoders if need be.",
        family="sd3",
        command="train",
        method="full",
        trainable="full",
        sections=(
            *(*DATA, *TRAINING, Sd3NoiseOptions, TrainedPartsConfig, Sd3EncoderOptions),
            *(WholeModelConfig, Sd3Options, *OUTPUT),
        ),
        absent=ADAPTERS_ALONE
        | names("learning_rate_te stop_text_encoder_training block_lr no_half_vae no_token_padding")
        | names("double_blocks_to_swap single_blocks_to_swap mem_eff_save diffusers_xformers"),
        overrides={
            "save_model_as": None,
            "weighting_scheme": "logit_normal",
            "t5xxl_max_token_length": None,
        },
        command_overrides={"weighting_scheme": "uniform", "t5xxl_max_token_length": 256},
        choices={
            "save_model_as": MODEL_FORMATS,
            "weighting_scheme": ("sigma_sqrt", "logit_normal", "mode", "cosmap"),
        },
        newer_choices={"weighting_scheme": ("none", "uniform")},
        unsupported=NOT_BUILT_FOR_TRAINING,
        impossible=_IMPOSSIBLE,
        without_effect={**_WITHOUT_EFFECT, **SAFETENSORS_ANYWAY},
        rules=(*NOISE_RULES, NEEDS_TRAINED_ENCODERS, *ENCODER_RULES),
    ),
    Script(
        name="train sd3 embedding",
        summary="Learn a new word for the CLIP encoders of Stable Diffusion 3 and 3.5.",
        family="sd3",
        command="train",
        method="embedding",
        trainable="words.embedding",
        is_drop_in=False,
        sections=(*DATA, *TRAINING, Sd3NoiseOptions, WordsConfig, Sd3Options, *OUTPUT),
        absent=WORDS_ABSENT | names("save_clip save_t5xxl"),
        unsupported=NOT_BUILT_FOR_TRAINING,
        impossible={"train_inpainting": _IMPOSSIBLE["train_inpainting"]},
        without_effect=_WITHOUT_EFFECT,
        rules=NOISE_RULES,
    ),
    Script(
        name="sd3_minimal_inference",
        summary="Make images with Stable Diffusion 3 or 3.5 and any number of LoRAs.",
        family="sd3",
        command="generate",
        files={"denoiser": "ckpt_path"},
        sections=(Sd3GenerationOptions, *GENERATION),
        absent=UNET_ONLY | names("guidance"),
        command_only=COMPOSITION | names("sampler image mask"),
        overrides={
            "dtype": "float32",
            "width": 1024,
            "height": 1024,
            "cfg_scale": 5.0,
            "seed": 1,
            "steps": 50,
            "negative_prompt": "",
            "t5xxl_token_length": 77,
        },
        command_overrides={"dtype": "bfloat16", "seed": None, "t5xxl_token_length": 256},
        without_effect={"attn_mode": "attention always runs in PyTorch's scaled_dot_product_attention"},
        rules=GENERATION_RULES,
    ),
    Script(
        name="merge sd3",
        summary="Merge adapters into Stable Diffusion 3 and its text encoders, or with each other.",
        family="sd3",
        command="merge",
        is_drop_in=False,
        files={"denoiser": "sd3_model"},
        sections=(
            *(AdapterMergingConfig, PartialUseConfig, Sd3MergeOptions, FreeMergeFormatConfig),
            HubAccessConfig,
        ),
    ),
    Script(
        name="tools/merge_sd3_safetensors",
        summary="Put the parts of Stable Diffusion 3 into one file.",
        family="sd3",
        command="join-parts",
        files={"denoiser": "dit"},
        sections=(Sd3PartOptions, JoiningConfig),
        without_effect={"device": "every tensor goes from file to file"},
    ),
)
