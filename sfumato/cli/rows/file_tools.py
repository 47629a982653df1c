"""The scripts that rework files of adapters and models, or look into them."""

from collections.abc import Mapping

from sfumato.config.scripts.script import Script, names
from sfumato.config.tools.adapter_merging import (
    AdapterExchangeConfig,
    AdapterMergingConfig,
    BlockWeightConfig,
    FreeMergeFormatConfig,
    MergeFormatConfig,
    NewRankConfig,
    ToPublishedConfig,
    WholeBaseConfig,
)
from sfumato.config.tools.checking import CheckingConfig
from sfumato.config.tools.conversion import ConversionConfig
from sfumato.config.tools.extraction import ExtractionConfig, ExtractionDetailConfig
from sfumato.config.tools.inspection import InspectionConfig
from sfumato.config.tools.interrogation import InterrogationConfig
from sfumato.config.tools.merging import MergingConfig
from sfumato.config.tools.resizing import ResizingConfig
from sfumato.config.tools.splitting import SplittingConfig
from sfumato.models.families.flux.options import FluxMergeOptions
from sfumato.models.registry.version_options import InsistenceOptions

_ALWAYS_STREAMED: Mapping[str, str] = {"mem_eff_load_save": "one tensor is read and written at a time anyway"}

_STAYS_IN_FILES = "models stay in their files, and weights are read one by one"
_LOADING_DEVICES = {"load_original_model_to": _STAYS_IN_FILES, "load_tuned_model_to": _STAYS_IN_FILES}

FILE_TOOLS: tuple[Script, ...] = (
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
        absent=names("concat shuffle no_metadata"),
    ),
    Script(
        name="networks/sdxl_merge_lora",
        summary="Merge adapters into SDXL, or with each other, block by block if need be.",
        family="sdxl",
        command="merge",
        sections=(AdapterMergingConfig, WholeBaseConfig, BlockWeightConfig, MergeFormatConfig),
        absent=names("v2"),
    ),
    Script(
        name="networks/svd_merge_lora",
        summary="Merge adapters of any ranks into one LoRA of a given rank.",
        command="merge-svd",
        sections=(AdapterMergingConfig, BlockWeightConfig, NewRankConfig, MergeFormatConfig),
        absent=names("concat shuffle"),
    ),
    Script(
        name="networks/convert_flux_lora",
        summary="Rewrite a FLUX.1 LoRA with the names of AI-toolkit, or the other way.",
        command="convert-lora",
        sections=(AdapterExchangeConfig,),
    ),
    Script(
        name="networks/check_lora_weights",
        summary="Say what an adapter file holds, and which programs load it.",
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
        command="show-metadata",
        sections=(InspectionConfig,),
    ),
    Script(
        name="networks/extract_lora_from_dylora",
        summary="Cut a DyLoRA into LoRAs of every smaller rank.",
        command="extract-dylora",
        sections=(SplittingConfig,),
    ),
    Script(
        name="tools/merge_models",
        summary="Merge whole models: the weighted sum of their tensors.",
        command="merge-models",
        sections=(MergingConfig,),
    ),
    Script(
        name="networks/flux_extract_lora",
        summary="Make a LoRA of the difference of two FLUX.1 models.",
        family="flux",
        command="extract-lora",
        sections=(ExtractionConfig,),
        absent=names("conv_dim min_diff load_precision load_original_model_to load_tuned_model_to"),
        without_effect={"mem_eff_safe_open": _STAYS_IN_FILES},
    ),
    Script(
        name="networks/extract_lora_from_models",
        summary="Make a LoRA of the difference of two models of Stable Diffusion 1, 2 or XL.",
        family="sd",
        command="extract-lora",
        sections=(InsistenceOptions, ExtractionConfig),
        absent=names("mem_eff_safe_open"),
        without_effect=_LOADING_DEVICES,
    ),
    Script(
        name="extract-lora",
        summary="Make a LoRA of the difference of two models.",
        command="extract-lora",
        is_drop_in=False,
        sections=(ExtractionConfig, ExtractionDetailConfig, InsistenceOptions),
        absent=frozenset({"v2", "sdxl", "mem_eff_safe_open", *_LOADING_DEVICES}),
        overrides={"clamp_quantile": 1.0},
    ),
    Script(
        name="networks/resize_lora",
        summary="Bring a LoRA to another rank.",
        command="resize-lora",
        sections=(ResizingConfig,),
    ),
)
