"""The scripts that look into data sets and prepare them."""

from sfumato.cli.rows import precaching
from sfumato.config.rules.effects import ALWAYS_OURS, NOT_WITHOUT_FILES
from sfumato.config.run.console import ConsoleConfig
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.file import FileConfig
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.scripts.script import Script, names
from sfumato.config.scripts.sections import DATA
from sfumato.config.tools.pictures.edges import EdgesConfig
from sfumato.config.tools.pictures.faces import FacesConfig
from sfumato.config.tools.pictures.masking import MaskingConfig
from sfumato.config.tools.preparation import (
    BucketingConfig,
    CleaningConfig,
    GatheringConfig,
    PrecachingConfig,
    ShrinkingConfig,
)
from sfumato.config.tools.report import ReportConfig
from sfumato.config.tools.upscaling import UpscalingConfig
from sfumato.models.registry.family_choice import FamilyChoice

_LOOKED_INTO = (
    ReportConfig, DatasetConfig, CaptionConfig, ImageConfig, LossConfig, LengthConfig, ModelConfig,
    *precaching.OWN_OPTIONS, HubAccessConfig, ConsoleConfig, FileConfig,
)  # fmt: skip
_NO_LOADING_OR_TRAINING = {**precaching.NO_WORKERS, **precaching.NO_TRAINING, **ALWAYS_OURS}

DATA_TOOLS: tuple[Script, ...] = (
    Script(
        name="inspect",
        summary="Show what a model would be trained on: problems, buckets, crops, captions.",
        command="inspect",
        is_drop_in=False,
        sections=_LOOKED_INTO,
        absent=names(
            "debug_dataset max_train_steps max_train_epochs initial_epoch initial_step "
            "skip_until_initial_step gradient_accumulation_steps v_parameterization vae no_half_vae "
            "prediction_type clip_skip disable_mmap_load_safetensors clip_l clip_g t5xxl ae "
            "apply_lg_attn_mask apply_t5_attn_mask "
            "split_mode model_type controlnet_model_name_or_path loss_type huber_schedule huber_c "
            "huber_scale min_snr_gamma scale_v_pred_loss_like_noise_pred v_pred_like_loss "
            "debiased_estimation_loss prior_loss_weight console_log_simple train_inpainting"
        ),
        impossible=NOT_WITHOUT_FILES,
        without_effect={"cache_info": "a report leaves the folders of images as they are"},
    ),
    Script(
        name="tools/cache_latents",
        summary="Encode the images of a data set ahead of training, into files.",
        command="cache-latents",
        sections=(PrecachingConfig, FamilyChoice, *DATA, *precaching.SECTIONS),
        absent=precaching.ABSENT | {"weighted_captions"},
        overrides={"weighting_scheme": "uniform"},
        choices=precaching.CHOICES,
        unsupported=names("model_type"),
        impossible={**NOT_WITHOUT_FILES, **precaching.NO_MASKED_IMAGES},
        without_effect={**_NO_LOADING_OR_TRAINING, **precaching.NO_TEXT},
    ),
    Script(
        name="tools/cache_text_encoder_outputs",
        summary="Encode the captions of a data set ahead of training, into files.",
        command="cache-text",
        sections=(PrecachingConfig, FamilyChoice, *DATA, *precaching.SECTIONS, *precaching.TEXT_OPTIONS),
        absent=precaching.ABSENT | {"no_half_vae"},
        overrides={"weighting_scheme": "uniform"},
        choices=precaching.CHOICES,
        unsupported=names("model_type"),
        impossible=NOT_WITHOUT_FILES,
        without_effect={**_NO_LOADING_OR_TRAINING, **precaching.NO_IMAGES},
    ),
    Script(
        name="tools/resize_images_to_resolution",
        summary="Make smaller copies of images, in several sizes.",
        command="resize-images",
        sections=(ShrinkingConfig,),
    ),
    Script(
        name="tools/latent_upscaler",
        summary="Make images of twice the size, sharpened by a network that works on latents.",
        command="upscale-images",
        sections=(UpscalingConfig,),
        without_effect={"debug": "there is nothing more to say"},
    ),
    Script(
        name="mask",
        summary="Make loss masks for a folder of images.",
        command="mask",
        is_drop_in=False,
        sections=(MaskingConfig, HubAccessConfig),
    ),
    Script(
        name="tools/canny",
        summary="Draw the edges of an image.",
        command="edges",
        sections=(EdgesConfig,),
    ),
    Script(
        name="tools/detect_face_rotate",
        summary="Cut faces out of images, upright and in a chosen size.",
        command="faces",
        sections=(FacesConfig,),
    ),
    Script(
        name="finetune/merge_captions_to_metadata",
        summary="Gather the captions beside images in one metadata file.",
        command="merge-captions",
        sections=(GatheringConfig,),
    ),
    Script(
        name="finetune/merge_dd_tags_to_metadata",
        summary="Gather the tags beside images in one metadata file.",
        command="merge-tags",
        sections=(GatheringConfig,),
        absent=names("caption_extention"),
        overrides={"caption_extension": ".txt"},
    ),
    Script(
        name="finetune/clean_captions_and_tags",
        summary="Clean the captions and tags of a metadata file.",
        command="clean-captions",
        sections=(CleaningConfig,),
    ),
    Script(
        name="finetune/prepare_buckets_latents",
        summary="Give the images of a metadata file their training sizes, and encode them.",
        command="prepare-buckets",
        sections=(BucketingConfig, HubAccessConfig),
        without_effect={"max_data_loader_n_workers": precaching.NO_WORKERS["max_data_loader_n_workers"]},
    ),
)
