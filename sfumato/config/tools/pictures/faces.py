"""How faces are cut out of images."""

from dataclasses import dataclass

from sfumato.config.checks import at_least, present, sides
from sfumato.config.rule import excludes
from sfumato.errors import UserError


@dataclass(frozen=True)
class FacesConfig:
    """Faces to cut out of images."""

    src_dir: str | None = None
    """Folder of the images."""

    dst_dir: str | None = None
    """Folder to write to; made if it is not there."""

    rotate: bool = False
    """Turn each image so that the eyes are level."""

    resize_fit: bool = False
    """Shrink images so that they just cover `crop_size`."""

    resize_face_size: int | None = None
    """Resize images so that the longer side of the face has this many pixels."""

    crop_size: str | None = None
    """Cut out this many pixels around the face, as width,height."""

    crop_ratio: str | None = None
    """Cut out this many times the face, as width,height: 2,3."""

    min_size: int | None = None
    """Leave out faces whose longer side is shorter."""

    max_size: int | None = None
    """Leave out faces whose longer side is not shorter."""

    multiple_faces: bool = False
    """Number the faces of an image in the names of files, from the largest."""

    debug: bool = False
    """Draw what was found into the images: faces, eyes."""

    def __post_init__(self) -> None:
        at_least(self, 1, "resize_face_size", "min_size", "max_size")
        present(self, "give --src_dir FOLDER --dst_dir FOLDER", "src_dir", "dst_dir")
        if self.resize_fit and not self.crop_size:
            raise UserError("--resize_fit needs --crop_size, which images are fitted to")
        _ = self.crop, self.times

    @property
    def crop(self) -> tuple[int, int] | None:
        """Width and height to cut out, in pixels."""
        return sides("crop_size", self.crop_size) if self.crop_size else None

    @property
    def times(self) -> tuple[float, float] | None:
        """Width and height to cut out, in sizes of the face."""
        if not self.crop_ratio:
            return None
        try:
            width, height = map(float, self.crop_ratio.split(","))
        except ValueError:
            raise UserError(f"--crop_ratio is {self.crop_ratio}; write width,height as 2,3") from None
        if not min(width, height) > 0:
            raise UserError(f"--crop_ratio is {self.crop_ratio}; use numbers above 0")
        return width, height


RULES = (
    excludes(["resize_fit"], ["resize_face_size"], "images have one size"),
    excludes(["crop_ratio"], ["resize_face_size", "crop_size"], "one of them says how much is cut out"),
)
"""What the options of `FacesConfig` mean to each other."""
