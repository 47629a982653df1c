"""The scripts for Stable Diffusion 1 and 2."""

from sfumato.config.rules.effects import (
    ADAPTERS_ALONE,
    ALWAYS_OURS,
    ALWAYS_OURS_WHOLE,
    CONTROL_ABSENT,
    LOADING_DEVICES,
    NO_CONTROL,
    NOT_BUILT_FOR_CONTROL,
    NOT_BUILT_FOR_TRAINING,
    SAFETENSORS_ANYWAY,
    WORDS_ABSENT,
)
from sfumato.config.run.model.control_networks import ControlNetConfig
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.model.partial_use import PartialUseConfig
from sfumato.config.run.model.whole_model import SWAPS_WHAT_IS_TRAINED, WholeModelConfig
from sfumato.config.run.output.saving import MODEL_FORMATS
from sfumato.config.run.training.trained_parts import NEEDS_TRAINED_ENCODERS, TrainedPartsConfig
from sfumato.config.run.training.words import JoinedWordConfig, WordsConfig
from sfumato.config.scripts.generation import GENERATION
from sfumato.config.scripts.script import Script, names
from sfumato.config.scripts.sections import DATA, OUTPUT, TRAINING
from sfumato.config.tools.adapter_merging import AdapterMergingConfig, MergeFormatConfig, WholeBaseConfig
from sfumato.config.tools.extraction import ExtractionConfig
from sfumato.config.tools.interrogation import InterrogationConfig
from sfumato.models.components.stable_diffusion.insistence import InsistenceOptions

_NO_TEXT_CACHE = names(
    "cache_text_encoder_outputs cache_text_encoder_outputs_to_disk text_encoder_batch_size "
    "disable_mmap_load_safetensors"
)
_WHOLE = (*DATA, *TRAINING, TrainedPartsConfig, WholeModelConfig, *OUTPUT)
_NOT_WHOLE = (
    ADAPTERS_ALONE
    | _NO_TEXT_CACHE
    | names("learning_rate_te1 learning_rate_te2 learning_rate_te3 block_lr num_last_block_to_freeze")
    | names("double_blocks_to_swap single_blocks_to_swap mem_eff_save skip_latents_validity_check")
)
_MERGING = (AdapterMergingConfig, PartialUseConfig, WholeBaseConfig, MergeFormatConfig)

ROWS: tuple[Script, ...] = (
    Script(
        name="train_network",
        summary="Train an adapter (LoRA) for Stable Diffusion 1 and 2.",
        family="sd",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(*DATA, *TRAINING, NetworkConfig, JoinedWordConfig, PartialUseConfig, *OUTPUT),
        absent=_NO_TEXT_CACHE | names("split_mode"),
        command_overrides={"network_module": "networks.lora"},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect=ALWAYS_OURS,
    ),
    Script(
        name="train_db",
        summary="Train Stable Diffusion 1 or 2 with its text encoder on a few images.",
        family="sd",
        command="train",
        method="dreambooth",
        trainable="dreambooth",
        sections=_WHOLE,
        absent=_NOT_WHOLE | names("in_json dataset_repeats train_text_encoder diffusers_xformers"),
        overrides={"save_model_as": None},
        choices={"save_model_as": MODEL_FORMATS},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect={
            **ALWAYS_OURS,
            **SAFETENSORS_ANYWAY,
            "no_token_padding": "captions are always filled up to the length that the model was trained with",
        },
        rules=(SWAPS_WHAT_IS_TRAINED,),
    ),
    Script(
        name="fine_tune",
        summary="Train all weights of Stable Diffusion 1 or 2 on many images.",
        family="sd",
        command="train",
        method="full",
        trainable="full",
        sections=_WHOLE,
        absent=_NOT_WHOLE | names("no_token_padding"),
        overrides={"save_model_as": None},
        choices={"save_model_as": MODEL_FORMATS},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect=ALWAYS_OURS_WHOLE,
        rules=(NEEDS_TRAINED_ENCODERS, SWAPS_WHAT_IS_TRAINED),
    ),
    *(
        Script(
            name=name,
            summary=f"Train a ControlNet for Stable Diffusion 1 and 2{which}.",
            family="sd",
            command="train",
            method=method,
            trainable="controlnet",
            sections=(*DATA, *TRAINING, ControlNetConfig, *OUTPUT),
            conditioning_role="control",
            absent=CONTROL_ABSENT
            | _NO_TEXT_CACHE
            | names("controlnet_model_path control_net_lr no_half_vae"),
            unsupported=NOT_BUILT_FOR_TRAINING | NOT_BUILT_FOR_CONTROL,
            impossible=NO_CONTROL,
            without_effect=ALWAYS_OURS,
        )
        for name, method, which in (
            ("train_control_net", "controlnet", ""),
            ("train_controlnet", "controlnet-old", ", by its older name"),
        )
    ),
    Script(
        name="train_textual_inversion",
        summary="Learn a new word for Stable Diffusion 1 and 2.",
        family="sd",
        command="train",
        method="embedding",
        trainable="words.embedding",
        sections=(*DATA, *TRAINING, WordsConfig, *OUTPUT),
        absent=WORDS_ABSENT | _NO_TEXT_CACHE,
        overrides={"save_model_as": "pt"},
        command_overrides={"save_model_as": "safetensors"},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect=ALWAYS_OURS,
    ),
    Script(
        name="train_textual_inversion_XTI",
        summary="Learn a new word for each layer of Stable Diffusion 1 and 2.",
        family="sd",
        command="train",
        method="layered-embedding",
        trainable="words.layered",
        sections=(*DATA, *TRAINING, WordsConfig, *OUTPUT),
        absent=WORDS_ABSENT | _NO_TEXT_CACHE | names("no_half_vae"),
        overrides={"save_model_as": "pt"},
        command_overrides={"save_model_as": "safetensors"},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect=ALWAYS_OURS,
    ),
    Script(
        name="generate sd",
        summary="Make images with Stable Diffusion 1 or 2.",
        family="sd",
        command="generate",
        is_drop_in=False,
        sections=(ModelConfig, *GENERATION),
        absent=names("guidance"),
        overrides={"width": 512, "height": 512, "cfg_scale": 7.5},
    ),
    Script(
        name="networks/merge_lora",
        summary="Merge adapters into Stable Diffusion 1 or 2, or with each other.",
        family="sd",
        command="merge",
        sections=(*_MERGING, HubAccessConfig),
    ),
    Script(
        name="networks/merge_lora_old",
        summary="Merge adapters into Stable Diffusion 1 or 2, as an older script did.",
        family="sd",
        command="merge",
        method="old",
        sections=(*_MERGING, HubAccessConfig),
        absent=names("concat shuffle no_metadata"),
    ),
    Script(
        name="networks/extract_lora_from_models",
        summary="Make a LoRA of the difference of two models of Stable Diffusion 1, 2 or XL.",
        family="sd",
        command="extract-lora",
        sections=(InsistenceOptions, ExtractionConfig, HubAccessConfig),
        absent=names("mem_eff_safe_open"),
        without_effect=LOADING_DEVICES,
    ),
    Script(
        name="networks/lora_interrogator",
        summary="Name the tokens that a LoRA for Stable Diffusion 1 or 2 changes most.",
        family="sd",
        command="interrogate-lora",
        sections=(InterrogationConfig, HubAccessConfig),
    ),
)
