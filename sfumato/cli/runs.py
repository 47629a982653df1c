"""The table of scripts: which sections each one has, and what of them is not built or has no effect.

A new script is a new row: parsing, `sfumato options`, the drop-in and the checks follow from it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from sfumato.cli import precaching
from sfumato.cli.flags import Option, did_you_mean, options_of
from sfumato.config.adapter_merging import (
    AdapterExchangeConfig,
    AdapterMergingConfig,
    BlockWeightConfig,
    FreeMergeFormatConfig,
    MergeFormatConfig,
    NewRankConfig,
    ToPublishedConfig,
    WholeBaseConfig,
)
from sfumato.config.caching import CachingConfig
from sfumato.config.captions import CaptionConfig
from sfumato.config.checking import CheckingConfig
from sfumato.config.console import ConsoleConfig
from sfumato.config.conversion import ConversionConfig
from sfumato.config.dataset import DatasetConfig
from sfumato.config.distributed import DistributedConfig
from sfumato.config.extraction import ExtractionConfig, ExtractionDetailConfig
from sfumato.config.file import FileConfig
from sfumato.config.flow import FlowConfig
from sfumato.config.generation import GenerationConfig
from sfumato.config.hub import HubConfig
from sfumato.config.images import ImageConfig
from sfumato.config.inspection import InspectionConfig
from sfumato.config.interrogation import InterrogationConfig
from sfumato.config.length import LengthConfig
from sfumato.config.loader import LoaderConfig
from sfumato.config.loss import LossConfig
from sfumato.config.memory import MemoryConfig
from sfumato.config.merging import MergingConfig
from sfumato.config.metadata import MetadataConfig
from sfumato.config.model import ModelConfig
from sfumato.config.network import NetworkConfig
from sfumato.config.noise import NoiseConfig
from sfumato.config.optimizer import OptimizerConfig
from sfumato.config.precision import PrecisionConfig
from sfumato.config.preparation import (
    BucketingConfig,
    CleaningConfig,
    GatheringConfig,
    PrecachingConfig,
    ShrinkingConfig,
)
from sfumato.config.preview import PreviewConfig
from sfumato.config.report import ReportConfig
from sfumato.config.resizing import ResizingConfig
from sfumato.config.run import Run
from sfumato.config.saving import FOLDER_FORMATS, SavingConfig
from sfumato.config.schedule import ScheduleConfig
from sfumato.config.splitting import SplittingConfig
from sfumato.config.tracking import TrackingConfig
from sfumato.config.validation import ValidationConfig
from sfumato.config.whole_model import WholeModelConfig
from sfumato.errors import UserError
from sfumato.models.choice import FamilyChoice
from sfumato.models.flux.options import (
    FluxGenerationOptions,
    FluxMergeOptions,
    FluxOptions,
    FluxTextOptions,
)
from sfumato.models.insistence import InsistenceOptions


@dataclass(frozen=True)
class Script:
    """One script of sd-scripts, and the sub-command that does the same.

    Attributes:
        name: path below the drop-in folder, without suffix.
        summary: one sentence for help texts.
        family: whose models it works on; empty where the files tell.
        command: the sub-command of `sfumato` that runs it.
        method: the word for what is trained in `sfumato train FAMILY METHOD`.
        trainable: what the training package calls it; becomes `Run.method`.
        is_drop_in: whether sd-scripts has a script of that name.
        sections: where its options come from, in the order of the help text.
        absent: options of these sections that the script does not have; their defaults hold.
        overrides: defaults that differ from the sections'.
        command_overrides: defaults that only the sub-command has.
        choices: allowed values that differ from the sections'.
        unsupported: options that are known but not built; they stop a run unless left at their defaults.
        unsupported_values: the same for single values of an option that is built otherwise.
        without_effect: options that change nothing here, with the reason.
    """

    name: str
    summary: str
    family: str
    command: str
    sections: tuple[type, ...]
    method: str = ""
    trainable: str = ""
    is_drop_in: bool = True
    absent: frozenset[str] = frozenset()
    overrides: Mapping[str, Any] = field(default_factory=dict)
    command_overrides: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    unsupported: frozenset[str] = frozenset()
    unsupported_values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    without_effect: Mapping[str, str] = field(default_factory=dict)

    def options(self, *, as_command: bool = False) -> dict[str, Option]:
        """Return the script's options by name, with the defaults of the sub-command where it is one."""
        overrides = {**self.overrides, **self.command_overrides} if as_command else self.overrides
        options = options_of(self.sections, overrides)
        options |= {name: replace(options[name], choices=allowed) for name, allowed in self.choices.items()}
        return {name: option for name, option in options.items() if name not in self.absent}


NOT_WITH_FLOW: Mapping[str, str] = {
    "min_snr_gamma": "it weighs the loss of noise-predicting models",
    "scale_v_pred_loss_like_noise_pred": "it weighs the loss of velocity-predicting models",
    "v_pred_like_loss": "it weighs the loss of noise-predicting models",
    "debiased_estimation_loss": "it weighs the loss of noise-predicting models",
    "noise_offset": "flow matching takes plain noise",
    "noise_offset_random_strength": "flow matching takes plain noise",
    "multires_noise_iterations": "flow matching takes plain noise",
    "multires_noise_discount": "flow matching takes plain noise",
    "adaptive_noise_scale": "flow matching takes plain noise",
    "zero_terminal_snr": "the noise levels of flow matching end in pure noise anyway",
    "v2": "it tells Stable Diffusion 1 from 2",
    "v_parameterization": "it is about velocity-predicting Stable Diffusion",
    "clip_skip": "the model listens to the text encoder's end",
}
"""Options of the older families that a flow-matching model has no use for."""

_PREVIEWS = ("sample_every_n_steps", "sample_every_n_epochs", "sample_at_first")
_WANDB = ("log_with wandb", "log_with all")
_HELD_BACK = ("validation_split", "dataset_config")
_HUB = ("huggingface_repo_id", "resume_from_huggingface")

IDLE_WITHOUT: Mapping[str, tuple[str, ...]] = {
    "sample_prompts": _PREVIEWS,
    "sample_sampler": _PREVIEWS,
    "wandb_run_name": _WANDB,
    "wandb_api_key": _WANDB,
    "huggingface_repo_type": _HUB,
    "huggingface_path_in_repo": _HUB,
    "huggingface_token": _HUB,
    "huggingface_repo_visibility": _HUB,
    "async_upload": _HUB,
    "dynamo_backend": ("torch_compile",),
    "zero_stage": ("deepspeed",),
    "dataset_repeats": ("in_json", "dataset_config", "conditioning_data_dir"),
    "conditioning_data_dir": ("masked_loss",),
    "save_last_n_epochs_state": ("save_state",),
    "save_last_n_steps_state": ("save_state",),
    "validation_seed": _HELD_BACK,
    "validate_every_n_steps": _HELD_BACK,
    "validate_every_n_epochs": _HELD_BACK,
    "max_validation_steps": _HELD_BACK,
}
"""Options that ask for nothing unless one of some others is given, or given with a certain value.

Front-ends send them always, so alone they must not stop a run because they are not built.
"""

OWN_ATTENTION: Mapping[str, str] = {
    "xformers": "attention always runs in PyTorch's scaled_dot_product_attention",
    "mem_eff_attn": "attention always runs in PyTorch's scaled_dot_product_attention",
}

OWN_GRADIENTS: Mapping[str, str] = {
    "ddp_gradient_as_bucket_view": "gradients always lie in the one buffer that processes sum",
    "ddp_static_graph": "gradients are summed once a step, whichever weights it used",
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


WHY_UNSUPPORTED: Mapping[str, str] = {
    "dataset_class": "what a class of one's own makes is in no files, to look at or to keep caches beside",
}
"""Why an option is not supported, where that is no matter of time."""

NOT_BUILT_FOR_TRAINING = (
    _names("deepspeed zero_stage zero3_init_flag zero3_save_16bit_model fp16_master_weights_and_gradients")
    | _names(
        "offload_optimizer_device offload_optimizer_nvme_path offload_param_device offload_param_nvme_path"
    )
    | _names("huggingface_repo_id huggingface_repo_type huggingface_path_in_repo huggingface_repo_visibility")
    | _names("huggingface_token save_state_to_huggingface resume_from_huggingface async_upload")
)
"""Options of the trainers that stop a run when they ask for something."""

_DATA = (
    ConsoleConfig, ModelConfig, DatasetConfig, CaptionConfig, ImageConfig, CachingConfig, LoaderConfig,
)  # fmt: skip
_TRAINING = (
    LengthConfig, OptimizerConfig, ScheduleConfig, PrecisionConfig, MemoryConfig, DistributedConfig,
    NoiseConfig, LossConfig,
)  # fmt: skip
_OUTPUT = (
    SavingConfig, MetadataConfig, HubConfig, TrackingConfig, PreviewConfig, ValidationConfig, FileConfig,
)  # fmt: skip

_ALWAYS_OURS: Mapping[str, str] = {
    **OWN_ATTENTION,
    **OWN_GRADIENTS,
    "lowram": "models are always loaded straight onto the device, one tensor at a time",
}

_FLUX_WITHOUT_EFFECT: Mapping[str, str] = {
    **NOT_WITH_FLOW,
    **_ALWAYS_OURS,
    "max_token_length": "CLIP-L always reads 77 tokens; --t5xxl_max_token_length sets T5's",
    "vae": "the autoencoder is given as --ae",
}

_NO_LOADING_OR_TRAINING = {**precaching.NO_WORKERS, **precaching.NO_TRAINING, **_ALWAYS_OURS}

_ALWAYS_STREAMED: Mapping[str, str] = {"mem_eff_load_save": "one tensor is read and written at a time anyway"}

_STAYS_IN_FILES = "models stay in their files, and weights are read one by one"
_LOADING_DEVICES = {"load_original_model_to": _STAYS_IN_FILES, "load_tuned_model_to": _STAYS_IN_FILES}

SCRIPTS: tuple[Script, ...] = (
    Script(
        name="flux_train_network",
        summary="Train an adapter (LoRA) for FLUX.1.",
        family="flux",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(*_DATA, *_TRAINING, FlowConfig, NetworkConfig, FluxOptions, *_OUTPUT),
        command_overrides={"network_module": "networks.lora_flux", "strict": True},
        unsupported=NOT_BUILT_FOR_TRAINING
        | _names("model_type controlnet_model_name_or_path weighted_captions"),
        without_effect={**_FLUX_WITHOUT_EFFECT, "no_half_vae": "this autoencoder does not overflow"},
    ),
    Script(
        name="flux_train",
        summary="Train all weights of FLUX.1.",
        family="flux",
        command="train",
        method="full",
        trainable="full",
        sections=(*_DATA, *_TRAINING, FlowConfig, FluxOptions, WholeModelConfig, *_OUTPUT),
        absent=_names("prior_loss_weight no_metadata training_comment fp8_base_unet no_half_vae split_mode")
        | _names("skip_until_initial_step initial_epoch initial_step validation_seed validation_split")
        | _names("validate_every_n_steps validate_every_n_epochs max_validation_steps"),
        overrides={"save_model_as": None},
        choices={"save_model_as": (None, "ckpt", "safetensors", *FOLDER_FORMATS)},
        command_overrides={"strict": True},
        unsupported=NOT_BUILT_FOR_TRAINING
        | _names("model_type controlnet_model_name_or_path weighted_captions"),
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
        sections=(*_DATA, *_TRAINING, NetworkConfig, *_OUTPUT),
        absent=_names("cache_text_encoder_outputs cache_text_encoder_outputs_to_disk text_encoder_batch_size")
        | _names("disable_mmap_load_safetensors blocks_to_swap split_mode"),
        command_overrides={"network_module": "networks.lora", "strict": True},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect=_ALWAYS_OURS,
    ),
    Script(
        name="sdxl_train_network",
        summary="Train an adapter (LoRA) for SDXL.",
        family="sdxl",
        command="train",
        method="lora",
        trainable="adapter",
        sections=(*_DATA, *_TRAINING, NetworkConfig, *_OUTPUT),
        absent=_names("text_encoder_batch_size blocks_to_swap split_mode"),
        command_overrides={"network_module": "networks.lora", "strict": True},
        unsupported=NOT_BUILT_FOR_TRAINING,
        without_effect={
            **_ALWAYS_OURS,
            "v2": "it tells Stable Diffusion 1 from 2",
            "clip_skip": "the model always listens to the text encoders' last layer but one",
        },
    ),
    Script(
        name="flux_minimal_inference",
        summary="Make pictures with FLUX.1 and any number of LoRAs.",
        family="flux",
        command="generate",
        sections=(FluxGenerationOptions, GenerationConfig),
        absent=frozenset({"sampler"}),
        unsupported=frozenset({"model_type"}),
    ),
    Script(
        name="generate sd",
        summary="Make pictures with Stable Diffusion 1 or 2.",
        family="sd",
        command="generate",
        is_drop_in=False,
        sections=(ModelConfig, GenerationConfig),
        absent=frozenset({"guidance"}),
        overrides={"width": 512, "height": 512, "cfg_scale": 7.5},
    ),
    Script(
        name="generate sdxl",
        summary="Make pictures with SDXL.",
        family="sdxl",
        command="generate",
        is_drop_in=False,
        sections=(ModelConfig, GenerationConfig),
        absent=frozenset({"guidance", "v2", "clip_skip"}),
        overrides={"width": 1024, "height": 1024, "cfg_scale": 7.5},
    ),
    Script(
        name="inspect",
        summary="Show what a model would be trained on: problems, buckets, crops, captions.",
        family="",
        command="inspect",
        is_drop_in=False,
        sections=(
            ReportConfig,
            DatasetConfig,
            CaptionConfig,
            ImageConfig,
            LossConfig,
            LengthConfig,
            ModelConfig,
            FluxOptions,
            ConsoleConfig,
            FileConfig,
        ),
        absent=_names("debug_dataset max_train_steps max_train_epochs initial_epoch")
        | _names("initial_step skip_until_initial_step gradient_accumulation_steps v_parameterization vae")
        | _names("no_half_vae clip_skip disable_mmap_load_safetensors clip_l t5xxl ae apply_t5_attn_mask")
        | _names("split_mode model_type controlnet_model_name_or_path loss_type huber_schedule huber_c")
        | _names("huber_scale min_snr_gamma scale_v_pred_loss_like_noise_pred v_pred_like_loss")
        | _names("debiased_estimation_loss prior_loss_weight console_log_simple"),
        unsupported=_names("dataset_class cache_info"),
    ),
    Script(
        name="networks/flux_merge_lora",
        summary="Merge adapters into FLUX.1 and its text encoders, or with each other.",
        family="flux",
        command="merge",
        sections=(AdapterMergingConfig, FluxMergeOptions, FreeMergeFormatConfig),
        without_effect=_ALWAYS_STREAMED
        | {"loading_device": "every tensor goes from the file straight to --working_device"},
    ),
    Script(
        name="networks/merge_lora",
        summary="Merge adapters into Stable Diffusion 1 or 2, or with each other.",
        family="sd",
        command="merge",
        sections=(AdapterMergingConfig, WholeBaseConfig, MergeFormatConfig),
    ),
    Script(
        name="networks/merge_lora_old",
        summary="Merge adapters into Stable Diffusion 1 or 2, as an older script did.",
        family="sd",
        command="merge",
        method="old",
        sections=(AdapterMergingConfig, WholeBaseConfig, MergeFormatConfig),
        absent=_names("concat shuffle no_metadata"),
    ),
    Script(
        name="networks/sdxl_merge_lora",
        summary="Merge adapters into SDXL, or with each other, block by block if need be.",
        family="sdxl",
        command="merge",
        sections=(AdapterMergingConfig, WholeBaseConfig, BlockWeightConfig, MergeFormatConfig),
        absent=_names("v2"),
    ),
    Script(
        name="networks/svd_merge_lora",
        summary="Merge adapters of any ranks into one LoRA of a given rank.",
        family="",
        command="merge-svd",
        sections=(AdapterMergingConfig, BlockWeightConfig, NewRankConfig, MergeFormatConfig),
        absent=_names("concat shuffle"),
    ),
    Script(
        name="networks/convert_flux_lora",
        summary="Rewrite a FLUX.1 LoRA with the names of AI-toolkit, or the other way.",
        family="",
        command="convert-lora",
        sections=(AdapterExchangeConfig,),
    ),
    Script(
        name="networks/check_lora_weights",
        summary="Say what an adapter file holds, and which programs load it.",
        family="",
        command="check-lora",
        sections=(CheckingConfig,),
    ),
    Script(
        name="networks/lora_interrogator",
        summary="Name the tokens that a LoRA for Stable Diffusion 1 or 2 changes most.",
        family="sd",
        command="interrogate-lora",
        sections=(InterrogationConfig,),
    ),
    Script(
        name="tools/convert_diffusers20_original_sd",
        summary="Rewrite a whole model as one file or as a folder, in any precision.",
        family="",
        command="convert",
        sections=(ConversionConfig,),
        without_effect={
            "unet_use_linear_projection": "these layers are always written as the model has them"
        },
    ),
    Script(
        name="tools/convert_diffusers_to_flux",
        summary="Rewrite a FLUX.1 transformer from diffusers' layout as one file.",
        family="flux",
        command="convert",
        method="to one file",
        sections=(ToPublishedConfig,),
        without_effect=_ALWAYS_STREAMED,
    ),
    Script(
        name="tools/show_metadata",
        summary="Show what a .safetensors file says of itself.",
        family="",
        command="show-metadata",
        sections=(InspectionConfig,),
    ),
    Script(
        name="networks/extract_lora_from_dylora",
        summary="Cut a DyLoRA into LoRAs of every smaller rank.",
        family="",
        command="extract-dylora",
        sections=(SplittingConfig,),
    ),
    Script(
        name="tools/merge_models",
        summary="Merge whole models: the weighted sum of their tensors.",
        family="",
        command="merge-models",
        sections=(MergingConfig,),
    ),
    Script(
        name="networks/flux_extract_lora",
        summary="Make a LoRA of the difference of two FLUX.1 models.",
        family="flux",
        command="extract-lora",
        sections=(ExtractionConfig,),
        absent=_names("conv_dim min_diff load_precision load_original_model_to load_tuned_model_to"),
        without_effect={"mem_eff_safe_open": _STAYS_IN_FILES},
    ),
    Script(
        name="networks/extract_lora_from_models",
        summary="Make a LoRA of the difference of two models of Stable Diffusion 1, 2 or XL.",
        family="sd",
        command="extract-lora",
        sections=(InsistenceOptions, ExtractionConfig),
        absent=frozenset({"mem_eff_safe_open"}),
        without_effect=_LOADING_DEVICES,
    ),
    Script(
        name="extract-lora",
        summary="Make a LoRA of the difference of two models.",
        family="",
        command="extract-lora",
        is_drop_in=False,
        sections=(ExtractionConfig, ExtractionDetailConfig, InsistenceOptions),
        absent=frozenset({"v2", "sdxl", "mem_eff_safe_open", *_LOADING_DEVICES}),
        overrides={"clamp_quantile": 1.0},
    ),
    Script(
        name="networks/resize_lora",
        summary="Bring a LoRA to another rank.",
        family="",
        command="resize-lora",
        sections=(ResizingConfig,),
    ),
    Script(
        name="tools/cache_latents",
        summary="Encode the pictures of a data set ahead of training, into files.",
        family="",
        command="cache-latents",
        sections=(PrecachingConfig, FamilyChoice, *_DATA, *precaching.SECTIONS),
        absent=precaching.ABSENT | {"weighted_captions"},
        overrides={"weighting_scheme": "uniform"},
        choices=precaching.CHOICES,
        unsupported=_names("dataset_class model_type"),
        without_effect={**_NO_LOADING_OR_TRAINING, **precaching.NO_TEXT},
    ),
    Script(
        name="tools/cache_text_encoder_outputs",
        summary="Encode the captions of a data set ahead of training, into files.",
        family="",
        command="cache-text",
        sections=(PrecachingConfig, FamilyChoice, *_DATA, *precaching.SECTIONS, FluxTextOptions),
        absent=precaching.ABSENT | {"no_half_vae"},
        overrides={"weighting_scheme": "uniform"},
        choices=precaching.CHOICES,
        unsupported=_names("dataset_class model_type"),
        without_effect={**_NO_LOADING_OR_TRAINING, **precaching.NO_PICTURES},
    ),
    Script(
        name="tools/resize_images_to_resolution",
        summary="Make smaller copies of pictures, in several sizes.",
        family="",
        command="resize-images",
        sections=(ShrinkingConfig,),
    ),
    Script(
        name="finetune/merge_captions_to_metadata",
        summary="Gather the captions beside pictures in one metadata file.",
        family="",
        command="merge-captions",
        sections=(GatheringConfig,),
    ),
    Script(
        name="finetune/merge_dd_tags_to_metadata",
        summary="Gather the tags beside pictures in one metadata file.",
        family="",
        command="merge-tags",
        sections=(GatheringConfig,),
        absent=frozenset({"caption_extention"}),
        overrides={"caption_extension": ".txt"},
    ),
    Script(
        name="finetune/clean_captions_and_tags",
        summary="Clean the captions and tags of a metadata file.",
        family="",
        command="clean-captions",
        sections=(CleaningConfig,),
    ),
    Script(
        name="finetune/prepare_buckets_latents",
        summary="Give the pictures of a metadata file their training sizes, and encode them.",
        family="",
        command="prepare-buckets",
        sections=(BucketingConfig,),
        without_effect={"max_data_loader_n_workers": precaching.NO_WORKERS["max_data_loader_n_workers"]},
    ),
)


def script_named(name: str) -> Script:
    """Return the row of that script; a `.py` at the end does not matter."""
    rows = {row.name: row for row in SCRIPTS}
    name = name.removesuffix(".py")
    if name not in rows:
        raise UserError(f"there is no script {name!r}{did_you_mean(name, rows)}; known: {', '.join(rows)}")
    return rows[name]


def script_for(command: str, family: str, method: str) -> Script:
    """Return the row that `sfumato COMMAND FAMILY METHOD` runs."""
    rows = {(row.family, row.method): row for row in SCRIPTS if row.command == command}
    if (family, method) not in rows:
        asked = f"{family} {method}".strip()
        known = [" ".join(key).strip() for key in rows]
        raise UserError(f"cannot {command} {asked!r}{did_you_mean(asked, known)}; known: {', '.join(known)}")
    return rows[family, method]


def for_chosen_family(script: Script, run: Run) -> Script:
    """Return a tool's row as it is for the family that the run names; other rows as they are.

    What a trainer of that family cannot do, or has no use for, such a tool has not either.
    """
    if FamilyChoice not in run:
        return script
    trainer = script_for("train", run[FamilyChoice].family, "lora")
    parts = options_of((FluxOptions, FluxTextOptions), {})
    strangers = (
        {} if FluxOptions in trainer.sections else precaching.because("the model has no such part", parts)
    )
    idle = {**strangers, **trainer.without_effect, **script.without_effect}
    return replace(
        script,
        family=trainer.family,
        unsupported=script.unsupported | (trainer.unsupported - script.without_effect.keys()),
        without_effect=idle,
    )
