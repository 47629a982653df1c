"""Write a mask for each image of a folder, where a data set's `mask_dir` expects it."""

from __future__ import annotations

import logging
from pathlib import Path

from PIL import Image, ImageFilter

from sfumato.checkpoints.atomic import atomic_file
from sfumato.checkpoints.name_trial import try_folder
from sfumato.config.run.run import Run
from sfumato.config.tools.pictures.masking import MaskingConfig
from sfumato.data.images.images import BrokenImageError, decode
from sfumato.data.sources.complaints import Complaints
from sfumato.data.sources.same_names import name_twins
from sfumato.errors import UserError
from sfumato.hub.access import access_for
from sfumato.log import counted, progress
from sfumato.tools.masking.contact_sheet import write_sheet
from sfumato.tools.masking.makers import MaskMaker, maker_for
from sfumato.tools.preparation import records

logger = logging.getLogger(__name__)


def make_masks(run: Run) -> None:
    """Write the masks, and a sheet of them.

    Raises:
        UserError: there are no images or no masks of them, or a file cannot be read or written.
    """
    options, complaints = run[MaskingConfig], Complaints()
    images, target = records.images(options.train_data_dir), Path(options.mask_dir)
    if target.resolve() == Path(options.train_data_dir).resolve():
        raise UserError(f"--mask_dir is {target}, the folder of the images; name another folder")
    try_folder(target, "choose another folder for the masks")
    name_twins(options.train_data_dir, [image.name for image in images], complaints)
    maker = maker_for(options, access_for(run))
    for image in progress(images, unit="image", title="making masks"):
        path = _place(image, target)
        if not (options.skip_existing and path.exists()):
            _write(image, path, maker, options, complaints)
    pairs = [(image, _place(image, target)) for image in images if _place(image, target).exists()]
    if not pairs:
        raise UserError(f"no image in {options.train_data_dir} got a mask; give another --mask_from")
    sheet = Path(options.contact_sheet or f"{target}_sheet.jpg")
    shown = write_sheet(sheet, pairs, complaints)
    logger.info("%s in %s; %d of them to look at in %s", counted(len(pairs), "mask"), target, shown, sheet)


def finished(mask: Image.Image, options: MaskingConfig) -> Image.Image:
    """Return a mask inverted, grown, softened and lifted as the options ask for it."""
    if options.invert:
        mask = mask.point([255 - level for level in range(256)])
    if options.grow:
        mask = mask.filter(ImageFilter.MaxFilter(2 * options.grow + 1))
    if options.blur:
        mask = mask.filter(ImageFilter.GaussianBlur(options.blur))
    low = round(255 * options.least)
    return mask.point([low + round((255 - low) * level / 255) for level in range(256)])


def _write(image: Path, path: Path, maker: MaskMaker, options: MaskingConfig, complaints: Complaints) -> None:
    try:
        mask = maker(decode(image, alpha=True))
    except BrokenImageError as error:
        complaints.leave_out(str(image), str(error))
        return
    if mask is None:
        complaints.leave_out(str(image), "there is no face in it, so that it gets no mask")
        return
    with atomic_file(path, is_flushed=False) as file:
        finished(mask, options).save(file, "PNG")


def _place(image: Path, folder: Path) -> Path:
    return folder / f"{image.stem}.png"
