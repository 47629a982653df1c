"""Where the images are."""

from dataclasses import dataclass
from pathlib import Path

from sfumato.config.checks import at_least, between, importable
from sfumato.config.rule import excludes, given, idle, implies


@dataclass(frozen=True)
class DatasetConfig:
    """Data sets: either folders given here or a TOML file that describes several."""

    train_data_dir: str | None = None
    """Folder of training images. Its sub-folders are named `10_cat`: ten repeats an epoch, class `cat`."""

    reg_data_dir: str | None = None
    """Folder of regularisation images in the same form; they keep what the base knows of the class."""

    in_json: str | None = None
    """JSON file of captions and sizes made by the preparation tools; `train_data_dir` holds its images."""

    dataset_config: Path | None = None
    """TOML file that describes data sets and their subsets; replaces the folder options."""

    dataset_class: str | None = None
    """Class of your own data set, as `package.module.Class`."""

    dataset_repeats: int = 1
    """How often each image is seen in an epoch, for data described by `in_json`."""

    train_batch_size: int = 1
    """Images in one forward pass on one device."""

    cache_info: bool = False
    """Keep captions and image sizes in a file beside the data, so that the next start is quicker."""

    conditioning_data_dir: str | None = None
    """Folder of control images or loss masks, named like the training images: what is trained decides."""

    mask_dir: str | None = None
    """Folder of loss masks, named like the training images; black is not learned. `masked_loss` is not needed
    for that."""

    control_dir: str | None = None
    """Folder of control images, named like the training images."""

    debug_dataset: bool = False
    """Show what the data set would deliver, then stop without training."""

    validation_seed: int | None = None
    """Seed that chooses the validation images; `seed` when not given."""

    validation_split: float = 0.0
    """Share of the images, 0 to 1, that is not trained: validation images, to measure the loss on."""

    def __post_init__(self) -> None:
        at_least(self, 1, "train_batch_size", "dataset_repeats")
        between(self, 0.0, 1.0, "validation_split")
        importable(self, "dataset_class")


_PARTNERS = ("conditioning_data_dir", "mask_dir", "control_dir")
_FOLDERS = ("train_data_dir", "reg_data_dir", "in_json")
_CACHES = (
    *("cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs"),
    *("cache_text_encoder_outputs_to_disk", "cache_info"),
)
HELD_BACK = (given("validation_split"), given("dataset_config"))
"""What there are validation images with."""

RULES = (
    excludes(["dataset_class"], ["dataset_config", *_FOLDERS, *_PARTNERS], "the class makes all images"),
    excludes(["dataset_class"], _CACHES, "what a class makes is in no files, and may vary"),
    excludes(["dataset_class"], ["validation_split"], "the class alone knows which images it has"),
    excludes(
        ["dataset_class"], ["debug_dataset"], "the report is of files; let the class show its images itself"
    ),
    *(
        implies(name, {name: None}, f"--dataset_config replaces {name}", among=(given("dataset_config"),))
        for name in _FOLDERS
    ),
    idle(["dataset_repeats"], given("in_json"), given("dataset_config"), *map(given, _PARTNERS)),
    idle(["validation_seed"], *HELD_BACK),
)
"""What these options mean to others."""
