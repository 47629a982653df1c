"""Give the images of a metadata file the sizes they are trained at."""

from __future__ import annotations

import logging
from pathlib import Path

from sfumato.config.run.data.caching import CachingConfig
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.distributed import DistributedConfig
from sfumato.config.run.model.memory import MemoryConfig
from sfumato.config.run.model.precision import PrecisionConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.length import LengthConfig
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.tools.preparation import BucketingConfig, PrecachingConfig
from sfumato.console import printable
from sfumato.data.images.buckets import Buckets, Size, round_limits
from sfumato.data.images.images import BrokenImageError, read_size
from sfumato.data.sources.complaints import Complaints
from sfumato.errors import UserError
from sfumato.hub.access import ANYBODY, HubAccess
from sfumato.hub.fetching import located
from sfumato.log import counted, progress
from sfumato.models.components.hub_files import any_model
from sfumato.models.registry.whole_models import run_encoding
from sfumato.tools.outputs import require_writable
from sfumato.tools.preparation import records

_UNIT = 8
"""What sides are multiples of: a latent's side in pixels."""

logger = logging.getLogger(__name__)


def prepared(options: BucketingConfig, access: HubAccess = ANYBODY) -> Run:
    """Write the metadata file with a training size for each image; return the run that reads it.

    Images in the folder that the file does not know are added; records of other images stay as they are.

    Args:
        access: how the hub is reached.

    Raises:
        UserError: a file or option will not do.
    """
    run = _run(options, access)
    found, buckets = records.read(Path(options.in_json), "IN_JSON"), _buckets(options, run[ImageConfig])
    complaints, seen = Complaints(), set()
    images = records.images(options.train_data_dir, recursive=options.recursive)
    require_writable("OUT_JSON", Path(options.out_json))
    for image in progress(images, unit="image", title="reading sizes"):
        key = records.key_of(image, full_path=options.full_path)
        if key in seen:
            complaints.warn(f"{image} is left out: another image has its name, and one record serves one")
            continue
        seen.add(key)
        try:
            bucket = _bucket(buckets, read_size(image))
        except BrokenImageError as error:
            complaints.leave_out(str(image), str(error))
            continue
        found.setdefault(key, {})["train_resolution"] = [side // _UNIT * _UNIT for side in bucket]
    if strangers := [key for key, record in found.items() if "train_resolution" not in record]:
        logger.warning(
            "%d of %s: no image in %s that can be read, and no training size, the first is %s",
            len(strangers),
            counted(len(found), "record"),
            options.train_data_dir,
            printable(strangers[0]),
        )
    records.write(Path(options.out_json), found)
    return run


def _bucket(buckets: Buckets, size: Size) -> Size:
    if min(size) < buckets.shortest_side:
        width, height = size
        raise BrokenImageError(f"{width}x{height} is smaller than --bucket_reso_steps {buckets.step}")
    return buckets.fit(size).bucket


def _run(options: BucketingConfig, access: HubAccess) -> Run:
    """Return the run that encodes the images, once the metadata file is written."""
    source = located(options.model_name_or_path, "MODEL_NAME_OR_PATH", any_model(), access)
    if source is None:
        raise UserError("MODEL_NAME_OR_PATH is empty; give a model or an autoencoder, as a file or a folder")
    base = run_encoding(source, "MODEL_NAME_OR_PATH", version=2 if options.v2 else None)
    return Run(
        base.script,
        base.family,
        [
            *(CaptionConfig(), LossConfig(), LengthConfig(), MemoryConfig(), DistributedConfig()),
            *base,
            DatasetConfig(train_data_dir=options.train_data_dir, in_json=options.out_json),
            ImageConfig(
                resolution=options.max_resolution,
                flip_aug=options.flip_aug,
                alpha_mask=bool(options.alpha_mask),
            ),
            CachingConfig(vae_batch_size=options.batch_size),
            PrecachingConfig(skip_existing=options.skip_existing),
            PrecisionConfig(mixed_precision=options.mixed_precision),
        ],
    )


def _buckets(options: BucketingConfig, images: ImageConfig) -> Buckets:
    resolution, step = images.size, options.bucket_reso_steps
    assert resolution is not None
    least, most = round_limits(options.min_bucket_reso, options.max_bucket_reso, step)
    if step % _UNIT:
        logger.warning("--bucket_reso_steps is %d: training sizes are rounded down to multiples of 8", step)
    if not options.bucket_no_upscale and not least <= min(resolution) <= max(resolution) <= most:
        raise UserError(
            f"--max_resolution is {options.max_resolution}; its sides must lie between "
            f"--min_bucket_reso {least} and --max_bucket_reso {most}"
        )
    return Buckets(resolution, least, most, step, options.bucket_no_upscale)
