"""What a person asked for: data sets of folders, every setting resolved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfumato.config.run.data.partners import PartnerRole
from sfumato.data.captions.captions import CaptionSettings
from sfumato.data.images.buckets import Buckets, Size


@dataclass(frozen=True)
class SubsetPlan:
    """Images that share their settings.

    Attributes:
        image_dir: their folder; may be None where `metadata_file` names them by path.
        num_repeats: how often each image is seen in an epoch.
        class_tokens: the caption of images that have none of their own.
        is_reg: images that keep the model's idea of the class (prior preservation).
        caption_extension: what a caption's file name ends in instead of the image's suffix.
        flip_aug: mirror each image with probability 1/2.
        cache_info: leave captions and sizes in a file for sd-scripts.
        metadata_file: captions of the images in one file, instead of a file each.
        mask_dir: folder of loss masks, named like the images.
        control_dir: folder of control images, named like the images.
        custom_attributes: what the user notes about the subset; handed on with each batch.
        resize_interpolation: filter for resizing; None is area for shrinking, Lanczos for enlarging.
    """

    image_dir: Path | None
    num_repeats: int = 1
    class_tokens: str | None = None
    is_reg: bool = False
    caption_extension: str = ".caption"
    captions: CaptionSettings = field(default_factory=CaptionSettings)
    flip_aug: bool = False
    color_aug: bool = False
    random_crop: bool = False
    face_crop_aug_range: tuple[float, float] | None = None
    alpha_mask: bool = False
    cache_info: bool = False
    metadata_file: Path | None = None
    mask_dir: Path | None = None
    control_dir: Path | None = None
    custom_attributes: Mapping[str, Any] = field(default_factory=dict)
    resize_interpolation: str | None = None

    @property
    def source(self) -> Path:
        """Where captions and images come from: the metadata file, or the folder."""
        source = self.metadata_file or self.image_dir
        assert source is not None
        return source

    @property
    def partner_dirs(self) -> dict[PartnerRole, Path]:
        """The folders of partner images that there are, by role."""
        folders: dict[PartnerRole, Path | None] = {"mask": self.mask_dir, "control": self.control_dir}
        return {role: folder for role, folder in folders.items() if folder is not None}

    @property
    def name(self) -> str:
        """The source's own name, as statistics and metadata know it."""
        return self.source.name


@dataclass(frozen=True)
class DatasetPlan:
    """Subsets that are trained at the same resolution and batch size.

    Attributes:
        batch_size: images in a batch, per process.
        network_multiplier: strength of the adapter while these images are trained.
        prior_loss_weight: weight of the loss of regularisation images.
        validation_split: share of each subset's images that is for validation, not trained.
        validation_seed: chooses them.
        train_inpainting: a mask of what is repainted is drawn for each image.
        skipped_size: images of no more pixels than this size has are left out.
        size_multiple: what sides of trained images must be multiples of.
        takes_latents: images of metadata files may be there as latents alone; see `latent_only_images.py`.
        latents_ending: how the names of such latents end behind the image's size, if training wrote them.
    """

    subsets: tuple[SubsetPlan, ...]
    buckets: Buckets
    batch_size: int = 1
    network_multiplier: float = 1.0
    prior_loss_weight: float = 1.0
    validation_split: float = 0.0
    validation_seed: int = 0
    train_inpainting: bool = False
    skipped_size: Size | None = None
    size_multiple: int = 8
    takes_latents: bool = False
    latents_ending: str = ""
