"""How data is prepared before it is trained on: images made smaller, captions gathered, latents kept."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.checks import at_least, is_side
from sfumato.config.rule import given, needs
from sfumato.config.run.data.images import sides_in_order
from sfumato.errors import UserError


@dataclass(frozen=True)
class PrecachingConfig:
    """Files that are there already."""

    skip_existing: bool = False
    """Take files that exist as they are, without opening them; otherwise those that are stale are remade."""


@dataclass(frozen=True)
class ShrinkingConfig:
    """Smaller copies of images."""

    src_img_folder: str = field(default="", metadata={"flags": ("src_img_folder",), "required": True})
    """Folder of the images."""

    dst_img_folder: str = field(default="", metadata={"flags": ("dst_img_folder",), "required": True})
    """Folder to write to; made if it is not there."""

    max_resolution: str = "512x512,384x384,256x256,128x128"
    """Sizes, as 1024x1024,512x512: of each, a copy of at most that area is made, never a larger one."""

    divisible_by: int = 1
    """Number that both sides are cut down to a multiple of."""

    interpolation: Literal["area", "cubic", "lanczos4"] = "area"
    """Filter for shrinking; `area` averages."""

    save_as_png: bool = False
    """Write PNG instead of JPEG."""

    copy_associated_files: bool = False
    """Copy captions and other files of an image's name beside each of its copies."""

    def __post_init__(self) -> None:
        at_least(self, 1, "divisible_by")
        if not self.sizes:
            raise UserError("--max_resolution is empty; write sizes as 1024x1024,512x512")

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Width and height of each size, by its text, in the order given."""
        texts = [text.strip() for text in self.max_resolution.split(",") if text.strip()]
        return {text: _size(text) for text in texts}


@dataclass(frozen=True)
class GatheringConfig:
    """Captions, or tags, of many files in one."""

    train_data_dir: str = field(default="", metadata={"flags": ("train_data_dir",), "required": True})
    """Folder of the images, with the text files beside them."""

    out_json: str = field(default="", metadata={"flags": ("out_json",), "required": True})
    """Metadata file to write."""

    in_json: str | None = None
    """Metadata file to add to; `out_json` when not given, if it is there."""

    caption_extention: str | None = None
    """Old spelling of `caption_extension`, still read."""

    caption_extension: str = ".caption"
    """Suffix of the text files beside the images."""

    full_path: bool = False
    """Name images by their paths, instead of by their file names without suffix."""

    recursive: bool = False
    """Take in the folders below, too. Needs `full_path`."""

    debug: bool = False
    """Show each image with what was read."""

    @property
    def suffix(self) -> str:
        """What the names of the text files end in."""
        extension = self.caption_extention or self.caption_extension
        return extension if extension.startswith(".") else f".{extension}"


@dataclass(frozen=True)
class CleaningConfig:
    """Captions and tags to clean."""

    in_json: str = field(default="", metadata={"flags": ("in_json",), "required": True})
    """Metadata file to read."""

    out_json: str = field(default="", metadata={"flags": ("out_json",), "required": True})
    """Metadata file to write."""

    debug: bool = False
    """Show each text that changes, before and after."""


@dataclass(frozen=True)
class BucketingConfig:
    """Training sizes and latents of the images in a metadata file."""

    train_data_dir: str = field(default="", metadata={"flags": ("train_data_dir",), "required": True})
    """Folder of the images."""

    in_json: str = field(default="", metadata={"flags": ("in_json",), "required": True})
    """Metadata file to read."""

    out_json: str = field(default="", metadata={"flags": ("out_json",), "required": True})
    """Metadata file to write, with the size that each image is trained at."""

    model_name_or_path: str = field(default="", metadata={"flags": ("model_name_or_path",), "required": True})
    """Model whose autoencoder makes the latents, or an autoencoder alone: a file, or a diffusers folder."""

    v2: bool = False
    """Insist that the model is Stable Diffusion 2; files tell, so this is not needed."""

    batch_size: int = 1
    """Images encoded together."""

    max_data_loader_n_workers: int | None = None
    """Processes that decode images in sd-scripts."""

    max_resolution: str = "512,512"
    """Size whose area no training size exceeds, as width,height in pixels."""

    min_bucket_reso: int = 256
    """Shortest side of a training size."""

    max_bucket_reso: int = 1024
    """Longest side of a training size."""

    bucket_reso_steps: int = 64
    """Number that the sides of training sizes are multiples of."""

    bucket_no_upscale: bool = False
    """Never enlarge an image; training sizes then follow from the images."""

    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Dtype of the autoencoder."""

    full_path: bool = False
    """Name images by their paths, instead of by their file names without suffix."""

    flip_aug: bool = False
    """Keep the latents of the mirrored images, too."""

    alpha_mask: str = ""
    """Keep the images' transparency as mask for the loss, if this is any text at all."""

    skip_existing: bool = False
    """Take files that exist as they are, without opening them; otherwise those that are stale are remade."""

    recursive: bool = False
    """Take in the folders below, too. Needs `full_path`."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size", "min_bucket_reso", "max_bucket_reso")
        at_least(self, 8, "bucket_reso_steps")


_OF_FOLDERS = needs(["recursive"], given("full_path"), reason="file names alone do not tell folders apart")

GATHERING = (_OF_FOLDERS,)
"""What the options of `GatheringConfig` mean to each other."""

BUCKETING = (_OF_FOLDERS, *sides_in_order())
"""What the options of `BucketingConfig` mean to each other."""


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) != 2 or not all(map(is_side, sides)):
        raise UserError(f"--max_resolution has {text!r}; write sizes as 1024x1024,512x512")
    return int(sides[0]), int(sides[1])
