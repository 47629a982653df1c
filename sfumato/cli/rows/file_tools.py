"""The scripts that rework files of any family's adapters and models, or look into them."""

from sfumato.config.rules.effects import LOADING_DEVICES
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.scripts.script import Script, names
from sfumato.config.tools.adapter_merging import (
    AdapterMergingConfig,
    BlockWeightConfig,
    MergeFormatConfig,
    NewRankConfig,
)
from sfumato.config.tools.checking import CheckingConfig
from sfumato.config.tools.conversion import ConversionConfig
from sfumato.config.tools.extraction import ExtractionConfig, ExtractionDetailConfig
from sfumato.config.tools.importing import ImportingConfig
from sfumato.config.tools.inspection import InspectionConfig
from sfumato.config.tools.merging import MergingConfig
from sfumato.config.tools.resizing import ResizingConfig
from sfumato.config.tools.splitting import SplittingConfig
from sfumato.models.components.stable_diffusion.insistence import InsistenceOptions

FILE_TOOLS: tuple[Script, ...] = (
    Script(
        name="networks/svd_merge_lora",
        summary="Merge adapters of any ranks into one LoRA of a given rank.",
        command="merge-svd",
        sections=(AdapterMergingConfig, BlockWeightConfig, NewRankConfig, MergeFormatConfig, HubAccessConfig),
        absent=names("concat shuffle"),
    ),
    Script(
        name="networks/check_lora_weights",
        summary="Say what an adapter file holds, and which programs load it.",
        command="check-lora",
        sections=(CheckingConfig,),
    ),
    Script(
        name="tools/convert_diffusers20_original_sd",
        summary="Rewrite a whole model as one file or as a folder, in any precision.",
        command="convert",
        sections=(ConversionConfig, HubAccessConfig),
        without_effect={
            "unet_use_linear_projection": "these layers are always written as the model has them"
        },
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
        name="extract-lora",
        summary="Make a LoRA of the difference of two models.",
        command="extract-lora",
        is_drop_in=False,
        sections=(ExtractionConfig, ExtractionDetailConfig, InsistenceOptions, HubAccessConfig),
        absent=frozenset({"v2", "sdxl", "mem_eff_safe_open", *LOADING_DEVICES}),
        overrides={"clamp_quantile": 1.0},
    ),
    Script(
        name="import",
        summary="Make a run file of one of kohya_ss, OneTrainer, AI-toolkit or SimpleTuner.",
        command="import",
        is_drop_in=False,
        sections=(ImportingConfig,),
    ),
    Script(
        name="networks/resize_lora",
        summary="Bring a LoRA to another rank.",
        command="resize-lora",
        sections=(ResizingConfig,),
        without_effect={"svd_lowrank_niter": "singular values are exact, and as cheap: no product is made"},
    ),
)
