"""The scripts for SDXL."""

from collections.abc import Mapping

from sfumato.config.rules.effects import (
    ADAPTERS_ALONE,
    ALWAYS_OURS,
    ALWAYS_OURS_WHOLE,
    CONTROL_ABSENT,
    NO_CONTROL,
    NOT_BUILT_FOR_CONTROL,
    NOT_BUILT_FOR_TRAINING,
    WORDS_ABSENT,
)
from sfumato.config.run.model.control_networks import ControlNetConfig, LLLiteConfig
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
from sfumato.config.tools.adapter_merging import (
    AdapterMergingConfig,
    BlockWeightConfig,
    MergeFormatConfig,
    WholeBaseConfig,
)

_ONE_KIND: Mapping[str, str] = {
    "v2": "it tells Stable Diffusion 1 from 2",
    "clip_skip": "the model always listens to the text encoders' last layer but one",
}

ROWS: tuple[Script, ...] = (
    Script(
        name="sdxl_train_network",
        summary="Train an adapter (LoRA) for SDXL.",
        family="sdxl",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(*DATA, *TRAINING, NetworkConfig, JoinedWordConfig, PartialUseConfig, *OUTPUT),
        absent=names("text_encoder_batch_size split_mode"),
        command_overrides={"network_module": "networks.lora"},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect={**ALWAYS_OURS, **_ONE_KIND},
    ),
    Script(
        name="sdxl_train",
        summary="Train all weights of SDXL, its text encoders included if need be.",
        family="sdxl",
        command="train",
        method="full",
        trainable="full",
        sections=(*DATA, *TRAINING, TrainedPartsConfig, WholeModelConfig, *OUTPUT),
        absent=ADAPTERS_ALONE
        | names("text_encoder_batch_size learning_rate_te learning_rate_te3 num_last_block_to_freeze")
        | names("no_token_padding mem_eff_save")
        | names("double_blocks_to_swap single_blocks_to_swap skip_latents_validity_check"),
        overrides={"save_model_as": None},
        choices={"save_model_as": MODEL_FORMATS},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect={**ALWAYS_OURS_WHOLE, **_ONE_KIND},
        rules=(NEEDS_TRAINED_ENCODERS, SWAPS_WHAT_IS_TRAINED),
    ),
    Script(
        name="sdxl_train_control_net",
        summary="Train a ControlNet for SDXL.",
        family="sdxl",
        command="train",
        method="controlnet",
        trainable="controlnet",
        sections=(*DATA, *TRAINING, ControlNetConfig, *OUTPUT),
        conditioning_role="control",
        absent=CONTROL_ABSENT | names("text_encoder_batch_size"),
        overrides={"control_net_lr": 1e-4},
        unsupported=NOT_BUILT_FOR_TRAINING | NOT_BUILT_FOR_CONTROL,
        impossible=NO_CONTROL,
        without_effect={**ALWAYS_OURS, **_ONE_KIND},
    ),
    *(
        Script(
            name=name,
            summary=f"Train a ControlNet-LLLite for SDXL{which}.",
            family="sdxl",
            command="train",
            method=method,
            trainable="lllite",
            sections=(*DATA, *TRAINING, LLLiteConfig, *OUTPUT),
            conditioning_role="control",
            absent=CONTROL_ABSENT | names("text_encoder_batch_size"),
            unsupported=NOT_BUILT_FOR_TRAINING | NOT_BUILT_FOR_CONTROL,
            impossible=NO_CONTROL,
            without_effect={**ALWAYS_OURS, **_ONE_KIND},
        )
        for name, method, which in (
            ("sdxl_train_control_net_lllite", "lllite", ""),
            ("sdxl_train_control_net_lllite_old", "lllite-old", ", by an older name"),
        )
    ),
    Script(
        name="sdxl_train_textual_inversion",
        summary="Learn a new word for SDXL.",
        family="sdxl",
        command="train",
        method="embedding",
        trainable="words.embedding",
        sections=(*DATA, *TRAINING, WordsConfig, *OUTPUT),
        absent=WORDS_ABSENT | names("text_encoder_batch_size"),
        overrides={"save_model_as": "pt"},
        command_overrides={"save_model_as": "safetensors"},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect={**ALWAYS_OURS, **_ONE_KIND},
    ),
    Script(
        name="generate sdxl",
        summary="Make images with SDXL.",
        family="sdxl",
        command="generate",
        is_drop_in=False,
        sections=(ModelConfig, *GENERATION),
        absent=names("guidance v2 clip_skip"),
        overrides={"width": 1024, "height": 1024, "cfg_scale": 7.5},
    ),
    Script(
        name="networks/sdxl_merge_lora",
        summary="Merge adapters into SDXL, or with each other, block by block if need be.",
        family="sdxl",
        command="merge",
        sections=(
            AdapterMergingConfig,
            PartialUseConfig,
            WholeBaseConfig,
            BlockWeightConfig,
            MergeFormatConfig,
            HubAccessConfig,
        ),
        absent=names("v2"),
    ),
)
