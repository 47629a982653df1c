"""The scripts for FLUX.1."""

from collections.abc import Mapping

from sfumato.config.rules.effects import (
    ADAPTERS_ALONE,
    ALWAYS_OURS,
    ALWAYS_STREAMED,
    CONTROL_ABSENT,
    NO_CONTROL,
    NOT_BUILT_FOR_CONTROL,
    NOT_BUILT_FOR_TRAINING,
    NOT_WITH_FLOW,
    SAFETENSORS_ANYWAY,
    STAYS_IN_FILES,
    WORDS_ABSENT,
)
from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.model.whole_model import SWAPS_WHAT_IS_TRAINED, WholeModelConfig
from sfumato.config.run.output.saving import FOLDER_FORMATS, MODEL_FORMATS
from sfumato.config.run.training.words import JoinedWordConfig, WordsConfig
from sfumato.config.scripts.generation import COMPOSITION, GENERATION, UNET_ONLY
from sfumato.config.scripts.script import Script, names
from sfumato.config.scripts.sections import DATA, OUTPUT, TRAINING
from sfumato.config.tools.adapter_exchange import AdapterExchangeConfig
from sfumato.config.tools.adapter_merging import (
    AdapterMergingConfig,
    FreeMergeFormatConfig,
    ToPublishedConfig,
)
from sfumato.config.tools.extraction import ExtractionConfig
from sfumato.models.families.flux.options import FluxGenerationOptions, FluxMergeOptions, FluxOptions

_WITHOUT_EFFECT: Mapping[str, str] = {
    **NOT_WITH_FLOW,
    **ALWAYS_OURS,
    "max_token_length": "CLIP-L always reads 77 tokens; --t5xxl_max_token_length sets T5's",
    "vae": "the autoencoder is given as --ae",
}
_UNSUPPORTED = NOT_BUILT_FOR_TRAINING | names("model_type controlnet_model_name_or_path")
_IMPOSSIBLE: Mapping[str, str] = {
    "train_inpainting": "FLUX.1 is told of no mask; leave it out",
    "weighted_captions": "T5 and the pooled vector of CLIP-L know no weights of words; leave it out",
}

ROWS: tuple[Script, ...] = (
    Script(
        name="flux_train_network",
        summary="Train an adapter (LoRA) for FLUX.1.",
        family="flux",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(
            *(*DATA, *TRAINING, FlowConfig, NetworkConfig, JoinedWordConfig, PartialUseConfig),
            *(FluxOptions, *OUTPUT),
        ),
        command_overrides={"network_module": "networks.lora_flux"},
        unsupported=_UNSUPPORTED,
        impossible=_IMPOSSIBLE,
        without_effect={**_WITHOUT_EFFECT, "no_half_vae": "this autoencoder does not overflow"},
    ),
    Script(
        name="flux_train",
        summary="Train all weights of FLUX.1.",
        family="flux",
        command="train",
        method="full",
        trainable="full",
        sections=(*DATA, *TRAINING, FlowConfig, FluxOptions, WholeModelConfig, *OUTPUT),
        absent=ADAPTERS_ALONE | names("prior_loss_weight no_half_vae no_token_padding diffusers_xformers"),
        overrides={"save_model_as": None},
        choices={"save_model_as": MODEL_FORMATS},
        unsupported=_UNSUPPORTED,
        impossible=_IMPOSSIBLE,
        without_effect={
            **_WITHOUT_EFFECT,
            "mem_eff_save": "files are always written one tensor at a time",
            **SAFETENSORS_ANYWAY,
        },
        rules=(SWAPS_WHAT_IS_TRAINED,),
    ),
    Script(
        name="flux_train_control_net",
        summary="Train a ControlNet for FLUX.1.",
        family="flux",
        command="train",
        method="controlnet",
        trainable="controlnet",
        sections=(*DATA, *TRAINING, FlowConfig, FluxOptions, WholeModelConfig, *OUTPUT),
        conditioning_role="control",
        absent=CONTROL_ABSENT - {"masked_loss", "cpu_offload_checkpointing"}
        | names("no_half_vae no_token_padding diffusers_xformers"),
        overrides={"save_model_as": None, "weighting_scheme": "uniform"},
        choices={
            "save_model_as": MODEL_FORMATS,
            "weighting_scheme": ("sigma_sqrt", "logit_normal", "mode", "cosmap", "none", "uniform"),
        },
        unsupported=NOT_BUILT_FOR_TRAINING | NOT_BUILT_FOR_CONTROL | names("model_type"),
        unsupported_values={"save_model_as": FOLDER_FORMATS},
        impossible={**_IMPOSSIBLE, **NO_CONTROL},
        without_effect={
            **_WITHOUT_EFFECT,
            "mem_eff_save": "files are always written one tensor at a time",
            **SAFETENSORS_ANYWAY,
        },
    ),
    Script(
        name="train flux embedding",
        summary="Learn a new word for the CLIP encoder of FLUX.1.",
        family="flux",
        command="train",
        method="embedding",
        trainable="words.embedding",
        is_drop_in=False,
        sections=(*DATA, *TRAINING, FlowConfig, WordsConfig, FluxOptions, *OUTPUT),
        absent=WORDS_ABSENT,
        unsupported=_UNSUPPORTED,
        impossible={"train_inpainting": _IMPOSSIBLE["train_inpainting"]},
        without_effect={**_WITHOUT_EFFECT, "no_half_vae": "this autoencoder does not overflow"},
    ),
    Script(
        name="flux_minimal_inference",
        summary="Make images with FLUX.1 and any number of LoRAs.",
        family="flux",
        command="generate",
        files={"denoiser": "ckpt_path"},
        sections=(FluxGenerationOptions, *GENERATION),
        absent=UNET_ONLY,
        command_only=COMPOSITION | names("sampler image mask"),
        part_dtypes={
            "denoiser": "flux_dtype",
            "clip_l": "clip_l_dtype",
            "t5xxl": "t5xxl_dtype",
            "vae": "ae_dtype",
        },
        unsupported=names("model_type"),
    ),
    Script(
        name="networks/flux_merge_lora",
        summary="Merge adapters into FLUX.1 and its text encoders, or with each other.",
        family="flux",
        command="merge",
        files={"denoiser": "flux_model"},
        sections=(
            *(AdapterMergingConfig, PartialUseConfig, FluxMergeOptions, FreeMergeFormatConfig),
            HubAccessConfig,
        ),
        without_effect={
            **ALWAYS_STREAMED,
            "loading_device": "every tensor goes from the file straight to --working_device",
        },
    ),
    Script(
        name="networks/flux_extract_lora",
        summary="Make a LoRA of the difference of two FLUX.1 models.",
        family="flux",
        command="extract-lora",
        sections=(ExtractionConfig, HubAccessConfig),
        absent=names("conv_dim min_diff load_precision load_original_model_to load_tuned_model_to"),
        without_effect={"mem_eff_safe_open": STAYS_IN_FILES},
    ),
    Script(
        name="networks/convert_flux_lora",
        summary="Rewrite a FLUX.1 LoRA with the names of AI-toolkit, or the other way.",
        family="flux",
        command="convert-lora",
        sections=(AdapterExchangeConfig, PartialUseConfig),
    ),
    Script(
        name="tools/convert_diffusers_to_flux",
        summary="Rewrite a FLUX.1 transformer from diffusers' layout as one file.",
        family="flux",
        command="convert",
        method="to one file",
        sections=(ToPublishedConfig, HubAccessConfig),
        without_effect=ALWAYS_STREAMED,
    ),
)
