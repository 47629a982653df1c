"""The scripts that train."""

from collections.abc import Mapping

from sfumato.config.rules.effects import ALWAYS_OURS, NOT_BUILT_FOR_TRAINING, NOT_WITH_FLOW
from sfumato.config.run.model.flow import FlowConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.whole_model import WholeModelConfig
from sfumato.config.run.output.saving import FOLDER_FORMATS
from sfumato.config.scripts.script import Script, names
from sfumato.config.scripts.sections import DATA, OUTPUT, TRAINING
from sfumato.models.families.flux.options import FluxOptions

_FLUX_WITHOUT_EFFECT: Mapping[str, str] = {
    **NOT_WITH_FLOW,
    **ALWAYS_OURS,
    "max_token_length": "CLIP-L always reads 77 tokens; --t5xxl_max_token_length sets T5's",
    "vae": "the autoencoder is given as --ae",
}

TRAINERS: tuple[Script, ...] = (
    Script(
        name="flux_train_network",
        summary="Train an adapter (LoRA) for FLUX.1.",
        family="flux",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(*DATA, *TRAINING, FlowConfig, NetworkConfig, FluxOptions, *OUTPUT),
        command_overrides={"network_module": "networks.lora_flux", "strict": True},
        unsupported=NOT_BUILT_FOR_TRAINING
        | names("model_type controlnet_model_name_or_path weighted_captions"),
        without_effect={**_FLUX_WITHOUT_EFFECT, "no_half_vae": "this autoencoder does not overflow"},
    ),
    Script(
        name="flux_train",
        summary="Train all weights of FLUX.1.",
        family="flux",
        command="train",
        method="full",
        trainable="full",
        sections=(*DATA, *TRAINING, FlowConfig, FluxOptions, WholeModelConfig, *OUTPUT),
        absent=names(
            "prior_loss_weight no_metadata training_comment fp8_base_unet no_half_vae split_mode "
            "skip_until_initial_step initial_epoch initial_step validation_seed validation_split "
            "validate_every_n_steps validate_every_n_epochs max_validation_steps"
        ),
        overrides={"save_model_as": None},
        choices={"save_model_as": (None, "ckpt", "safetensors", *FOLDER_FORMATS)},
        command_overrides={"strict": True},
        unsupported=NOT_BUILT_FOR_TRAINING
        | names("model_type controlnet_model_name_or_path weighted_captions"),
        without_effect={
            **_FLUX_WITHOUT_EFFECT,
            "mem_eff_save": "files are always written one tensor at a time",
            "use_safetensors": "files are safetensors unless --save_model_as says otherwise",
        },
    ),
    Script(
        name="train_network",
        summary="Train an adapter (LoRA) for Stable Diffusion 1 and 2.",
        family="sd",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(*DATA, *TRAINING, NetworkConfig, *OUTPUT),
        absent=names(
            "cache_text_encoder_outputs cache_text_encoder_outputs_to_disk text_encoder_batch_size "
            "disable_mmap_load_safetensors blocks_to_swap split_mode"
        ),
        command_overrides={"network_module": "networks.lora", "strict": True},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect=ALWAYS_OURS,
    ),
    Script(
        name="sdxl_train_network",
        summary="Train an adapter (LoRA) for SDXL.",
        family="sdxl",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(*DATA, *TRAINING, NetworkConfig, *OUTPUT),
        absent=names("text_encoder_batch_size blocks_to_swap split_mode"),
        command_overrides={"network_module": "networks.lora", "strict": True},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect={
            **ALWAYS_OURS,
            "v2": "it tells Stable Diffusion 1 from 2",
            "clip_skip": "the model always listens to the text encoders' last layer but one",
        },
    ),
)
