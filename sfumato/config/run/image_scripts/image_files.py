"""Where images are written, and how their files are called."""

from dataclasses import dataclass

from sfumato.config.rule import given, idle


@dataclass(frozen=True)
class ImageFileConfig:
    """Files that are written."""

    outdir: str = "outputs"
    """Folder for the images; made if it is not there."""

    sequential_file_name: bool = False
    """Count files through (`im_000001.png`) instead of naming them after the moment and the seed."""

    use_original_file_name: bool = False
    """Name each file after the image that it was made of."""


RULES = (idle(["use_original_file_name"], given("image_path")),)
"""What these options mean to others."""
