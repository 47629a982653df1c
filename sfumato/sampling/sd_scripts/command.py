"""Making the images of all prompt lines of one run: what the scripts of sd-scripts do."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from sfumato.config.run.image_scripts.hires import HighresFixConfig
from sfumato.config.run.image_scripts.image_files import ImageFileConfig
from sfumato.config.run.image_scripts.networks import ImageNetworkConfig
from sfumato.config.run.image_scripts.prompts import PromptSourceConfig
from sfumato.config.run.image_scripts.sizes import SizeConfig
from sfumato.config.run.image_scripts.speed import SpeedConfig
from sfumato.config.run.image_scripts.start_images import StartImageConfig
from sfumato.config.run.image_scripts.steps import StepConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, is_told_sizes
from sfumato.models.registry.families import family_for
from sfumato.sampling.sd_scripts.asked_images import AskedImage, ImageList, batches_of
from sfumato.sampling.sd_scripts.idle_options import idle_here
from sfumato.sampling.sd_scripts.image_maker import ImageMaker
from sfumato.sampling.sd_scripts.line_defaults import defaults_of
from sfumato.sampling.sd_scripts.model_file import with_model
from sfumato.sampling.sd_scripts.prompt_lines import lines_for
from sfumato.sampling.sd_scripts.rounds import Draws, asked_by, newest, older
from sfumato.sampling.sd_scripts.start_files import StartFiles, files_named
from sfumato.sampling.sd_scripts.typed_lines import PreviewWindow, typed_lines
from sfumato.sampling.sd_scripts.written_images import WrittenImages

logger = logging.getLogger(__name__)


def make_images(run: Run) -> None:
    """Make the images that a run of gen_img asks for.

    Raises:
        UserError: a file or an option will not do.
    """
    ImageRun(run, newest).make_all()


def make_images_as_before(run: Run) -> None:
    """Make the images that a run of an older script asks for; see `make_images`."""
    ImageRun(run, older).make_all()


class ImageRun:
    """One run of such a script.

    Args:
        draws: how the script draws seeds and variants.
    """

    def __init__(self, run: Run, draws: Callable[[PromptSourceConfig, int | None], Draws]) -> None:
        self._run = run = with_model(run)
        self._config = run[PromptSourceConfig]
        self._draws = draws
        self._starts = starts_of(run)
        family = family_for(run)
        self._defaults = defaults_of(run, family.identity.resolution)
        for line in idle_here(run, family):
            logger.warning(line)
        self._maker = ImageMaker(run, family)
        source = family.source(DENOISER)
        self._files = WrittenImages(
            run[ImageFileConfig],
            sampler=run[StepConfig].sampler,
            has_sizes=is_told_sizes(family),
            details={"model": source.name if source else "", "adapters": self._maker.networks.names()},
        )

    def make_all(self) -> None:
        """Make the images of all lines, or of those that are typed in."""
        lines = lines_for(
            self._config,
            self._starts.images,
            self._run.values(),
            self._maker.pipeline,
            [self._maker.networks],
        )
        draws = self._draws(self._config, lines.num_lines if lines else None)
        images = ImageList(self._defaults, draws.choose, self._config.images_per_prompt, self._starts)
        if lines is None:
            self._converse(images, draws)
        else:
            self._make(asked_by(lines, images, draws, self._config))
            if unused := self._starts.images[images.num_in_round :]:
                logger.warning("%s and those behind it were not used: give more prompts", unused[0])

    def _converse(self, images: ImageList, draws: Draws) -> None:
        """Make the images of each line that is typed in; Ctrl-C ends those of one line."""
        window = None if self._config.no_preview else PreviewWindow()
        for line in typed_lines():
            self._answer(images.of_line(line, draws.seeds), window)

    def _answer(self, asked: Iterable[AskedImage], window: PreviewWindow | None) -> None:
        try:
            self._make(asked, window)
        except UserError as error:
            logger.error("%s", error)
        except KeyboardInterrupt:
            logger.warning("stopped; type the next prompt, or end the input")

    def _make(self, asked: Iterable[AskedImage], window: PreviewWindow | None = None) -> None:
        for batch in batches_of(asked, self._run[SpeedConfig].batch_size):
            for image in batch:
                logger.info(
                    "image %d, seed %d: %s", image.number + 1, image.request.seed, image.request.prompt
                )
            for stage, made in self._maker.make(batch):
                for place, (image, picture) in enumerate(made):
                    path = self._files.write(picture, image, place=place, stage=stage)
                    logger.info("wrote %s", path)
                    if window is not None:
                        window.show(picture, image.request.prompt)


def starts_of(run: Run) -> StartFiles:
    """Return the images that a run starts from; with networks, its mask is of regions and repaints nothing.

    Raises:
        UserError: a file or folder is missing.
    """
    config, size = run[StartImageConfig], run[SizeConfig]
    is_regional = bool(run[ImageNetworkConfig].network_module)
    is_sized = (size.W is not None and size.H is not None) or run[HighresFixConfig].highres_fix_scale
    masks = [] if is_regional else files_named(config.mask_path, "mask_path")
    images = files_named(config.image_path, "image_path")
    if masks and not images:
        raise UserError(f"--mask_path is {config.mask_path}, and --image_path names no image to repaint")
    return StartFiles(images, masks, has_own_size=not is_sized)
