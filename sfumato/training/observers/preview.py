"""Images made while a model is trained, from the weights as they are, without leaving a trace in the run.

Weights, random numbers, modes and memory are after a preview what they were before it, and a preview that
fails is a warning: a run with previews trains exactly what it would have trained without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from sfumato.adapters.network.network import Network
from sfumato.config.run.output.preview import PreviewConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, VAE, Family, Prediction
from sfumato.models.interface.parts import Parts
from sfumato.sampling import sampler_names
from sfumato.sampling.encoding import Text, encode_prompt, tokenize_prompt
from sfumato.sampling.output.image_files import write_image
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.prompts.files import read_prompts
from sfumato.sampling.prompts.prompt_options import PromptOptions
from sfumato.sampling.request import Request, random_seed
from sfumato.sampling.starts import canvas
from sfumato.training.core.commands import Command
from sfumato.training.core.distributed import Processes
from sfumato.training.core.events import ImageMade, Started
from sfumato.training.core.observer import Observer
from sfumato.training.core.plan import Step
from sfumato.training.core.precision import Precision
from sfumato.training.observers.evaluation import at_rest, same_random_numbers
from sfumato.training.observers.saving import Names

logger = logging.getLogger(__name__)

FOLDER = "sample"
SIDE = 512
MINIMUM_SIDE = 64


def plan(config: PreviewConfig, noise: NoiseConfig, family: Family) -> Previews | None:
    """Read when previews are made and of what; return None where none are asked for.

    Raises:
        UserError: the prompt file is missing or broken, or asks for something impossible.
    """
    rhythm = rhythm_for(config)
    if not rhythm.is_any:
        return None
    if not config.sample_prompts:
        logger.warning("no previews are made: --sample_prompts, the file that says of what, is not given")
        return None
    prompts = _read(Path(config.sample_prompts), config.sample_sampler, family)
    if not prompts:  # front-ends write such a file where no prompt was typed
        logger.warning("no previews are made: --sample_prompts %s holds no prompt", config.sample_prompts)
        return None
    return Previews(family, rhythm, prompts, noise.zero_terminal_snr)


def file_for(names: Names, mark: str, index: int, seed: int | None) -> Path:
    """Return the file of an image that is made now, as sd-scripts names it."""
    pieces = [names.name, mark, f"{index:02d}", time.strftime("%Y%m%d%H%M%S"), seed]
    stem = "_".join(str(piece) for piece in pieces if piece is not None)
    return names.folder / FOLDER / f"{stem}.png"


@dataclass(frozen=True)
class PreviewRhythm:
    """When previews are made; None means never."""

    every_epochs: int | None
    every_steps: int | None
    at_first: bool

    @property
    def is_any(self) -> bool:
        """Whether there is a preview at all."""
        return bool(self.every_epochs or self.every_steps or self.at_first)

    def mark(self, step: Step) -> str | None:
        """Return how files of a preview after this step are marked, or None where there is no preview."""
        if self.every_epochs:
            ends = step.ends_epoch or step.is_last
            return f"e{step.epoch:06d}" if ends and step.epoch % self.every_epochs == 0 else None
        is_due = self.every_steps and step.number % self.every_steps == 0
        return f"{step.number:06d}" if is_due else None


def rhythm_for(config: PreviewConfig) -> PreviewRhythm:
    """Return the rhythm that the options ask for; epochs win over steps."""
    epochs = _positive(config.sample_every_n_epochs, "sample_every_n_epochs")
    steps = _positive(config.sample_every_n_steps, "sample_every_n_steps")
    if epochs and steps:
        logger.warning("--sample_every_n_steps is left out, since --sample_every_n_epochs is given")
    return PreviewRhythm(epochs, None if epochs else steps, config.sample_at_first)


def _positive(every: int | None, name: str) -> int | None:
    if every is None or every > 0:
        return every
    logger.warning("--%s is %d, so it makes no previews; give 1 or more for some", name, every)
    return None


@dataclass(frozen=True)
class PreviewPrompt:
    """One image to be made again and again.

    Attributes:
        is_seeded: whether the prompt gives its seed; otherwise each image gets a new one.
    """

    request: Request
    is_seeded: bool

    def now(self) -> Request:
        """Return the request with the seed that the next image takes."""
        return self.request if self.is_seeded else replace(self.request, seed=random_seed())


@dataclass
class Previews:
    """What is shown and when; nothing heavy is in memory before `encode`.

    Attributes:
        zero_terminal: whether the schedule that is trained with ends in pure noise.
        texts: outputs of the encoders that are not trained, on the CPU, by prompt.
        encoders: these encoders; the others run anew for each image.
    """

    family: Family
    rhythm: PreviewRhythm
    prompts: Sequence[PreviewPrompt]
    zero_terminal: bool = False
    texts: dict[str, Text] = field(default_factory=dict)
    encoders: tuple[str, ...] = ()

    def longest_file(self, names: Names) -> Path:
        """Return a file like those that will be written, with the longest name."""
        seeds = [prompt.request.seed for prompt in self.prompts if prompt.is_seeded]
        return file_for(names, "e000000", len(self.prompts), max(seeds, default=None))

    def encode(self, parts: Parts, encoders: Sequence[str]) -> None:
        """Encode all prompts once and for all, under the caller's autocast.

        Args:
            parts: an encoder that is not loaded is loaded, and stays for the caller to release.
            encoders: the text encoders that are not trained.
        """
        every = dict.fromkeys(text for prompt in self.prompts for text in prompt.request.prompts())
        encoded = {text: _encode(self.family, parts, encoders, text) for text in every}
        self.texts = {text: {k: v.cpu() for k, v in own.items()} for text, own in encoded.items()}
        self.encoders = tuple(encoders)

    def observer(
        self,
        parts: Parts,
        network: Network | None,
        names: Names,
        precision: Precision,
        processes: Processes,
        *,
        evaluating: Callable[[], AbstractContextManager[object]] = nullcontext,
        audience: Observer | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> PreviewObserver:
        """Return what makes the previews, one observer in each process.

        Args:
            parts: with the denoiser that is trained or adapted.
            network: the adapters at work on it, if there are any.
            names: of the run's files; images lie in the folder `sample` beside them.
            evaluating: the context in which weights are as they would be saved. It must leave them bit for
                bit as they were.
            audience: told of each image.
            should_stop: asked before each sampler step; True leaves the remaining images out.
        """
        vae_dtype = parts.dtypes.get(VAE, precision.compute)  # with --no_half_vae it computes in float32
        pipeline = Pipeline(
            self.family,
            parts,
            dtype=precision.compute,
            dtypes={VAE: vae_dtype},
            zero_terminal=self.zero_terminal,
        )
        told = audience or Observer()
        return PreviewObserver(
            self, pipeline, network, names, precision, processes, evaluating, told, should_stop
        )


@dataclass
class PreviewObserver(Observer):
    """Makes every n-th prompt's image, where n is the number of processes, and tells all of them."""

    previews: Previews
    pipeline: Pipeline
    network: Network | None
    names: Names
    precision: Precision
    processes: Processes
    evaluating: Callable[[], AbstractContextManager[object]]
    audience: Observer
    should_stop: Callable[[], bool]

    def started(self, event: Started) -> None:
        """Make the previews of a model that was not trained yet, if they are asked for."""
        if self.previews.rhythm.at_first and not event.step:
            self._make_all("e000000", {"step": 0})

    def after(self, step: Step) -> None:
        """Make the previews that this step asks for."""
        mark = self.previews.rhythm.mark(step)
        if mark is not None:
            self._make_all(mark, {"epoch": step.epoch, "step": step.number})

    def asked(self, command: Command, step: Step) -> None:
        """Make previews of this step, unless that is done."""
        if command is Command.SAMPLE and self.previews.rhythm.mark(step) is None:
            self._make_all(f"{step.number:06d}", {"epoch": step.epoch, "step": step.number})

    def _make_all(self, mark: str, details: Mapping[str, int]) -> None:
        device = self.pipeline.parts.device
        made: list[ImageMade] = []
        # Processes without an image of their own go through the same contexts: their weights stay equal.
        with self.evaluating(), at_rest(self.network), same_random_numbers(device), self._same_memory():
            for index, prompt in enumerate(self.previews.prompts):
                if index % self.processes.world == self.processes.rank and not self.should_stop():
                    made += self._try(index, prompt, mark, details)
        for event in self.processes.of_others(made):
            self.audience.image(event)

    def _try(
        self, index: int, prompt: PreviewPrompt, mark: str, details: Mapping[str, int]
    ) -> list[ImageMade]:
        """Make one image and tell of it; a failure (a full disk, too little memory) ends no training."""
        try:
            path = self._make(index, prompt, mark, details)
        except (UserError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            logger.warning("preview %d is left out, training goes on: %s", index, reason)
            return []
        event = ImageMade(details["step"], index, prompt.request.prompt, path)
        self.audience.image(event)
        return [event]

    def _make(self, index: int, prompt: PreviewPrompt, mark: str, details: Mapping[str, int]) -> Path:
        request = prompt.now()
        seed = request.seed if prompt.is_seeded else None
        texts = {text: self._text(text) for text in request.prompts()}
        image = self.pipeline(request, texts, self._stop_if_asked)
        path = file_for(self.names, mark, index, seed)
        write_image(image, path, request, self._model() | dict(details))
        logger.info("preview %s", path)
        return path

    def _text(self, text: str) -> Text:
        """Return what a prompt was encoded to at the start, and what trained encoders now make of it."""
        previews = self.previews
        live = [name for name in previews.family.text_outputs if name not in previews.encoders]
        with self.precision.autocast():
            made = _encode(previews.family, self.pipeline.parts, live, text)
        return {**previews.texts.get(text, {}), **made}

    def _stop_if_asked(self, step: int, latents: Tensor) -> None:
        if self.should_stop():  # who asked may wait for no more than a few seconds
            raise UserError("the run is to end")

    def _model(self) -> dict[str, Any]:
        source = self.previews.family.source(DENOISER)
        return {"model": source.name} if source else {}

    @contextmanager
    def _same_memory(self) -> Iterator[None]:
        """Release the parts that were loaded only for the images."""
        family, parts = self.previews.family, self.pipeline.parts
        absent = [part for part in (*family.text_outputs, DENOISER, VAE) if part not in parts]
        try:
            yield
        finally:
            parts.release(*absent)


def _encode(family: Family, parts: Parts, encoders: Sequence[str], text: str) -> dict[str, Tensor]:
    """Return the outputs of these encoders for one prompt, each (1, ...), without gradients."""
    if not encoders:
        return {}
    tokens = tokenize_prompt(family, text)
    outputs: dict[str, Tensor] = {}
    for name in encoders:
        module = parts[name]  # loaded outside no_grad, for it may be trained
        with torch.no_grad():
            outputs |= encode_prompt(family, name, module, tokens)
    return outputs


def _read(path: Path, default_sampler: str, family: Family) -> list[PreviewPrompt]:
    try:
        lines = read_prompts(path)
    except UserError as error:
        raise UserError(f"--sample_prompts: {error}") from None
    _say_what_differs(lines, default_sampler, family.prediction)
    prompts = []
    for number, options in enumerate(lines, 1):
        try:
            request = _request(options, default_sampler, family)
        except UserError as error:
            raise UserError(f"--sample_prompts {path}, prompt {number}: {error}") from None
        prompts.append(PreviewPrompt(request, is_seeded=options.seed is not None))
    return prompts


def _request(options: PromptOptions, default_sampler: str, family: Family) -> Request:
    usual = family.sampling
    defaults = Request(
        "",
        width=SIDE,
        height=SIDE,
        steps=usual.preview_steps,
        guidance=usual.guidance,
        cfg_scale=usual.cfg_scale,
        sampler=default_sampler,
    )
    asked = options.request(defaults, usual.scale)
    canvas.check(asked)
    unit = family.latents.downscale * family.latents.patch
    width, height = (_fitted(side, unit) for side in (asked.width, asked.height))
    if (width, height) != (asked.width, asked.height):
        logger.warning(
            "the preview of '%s' will be %d x %d, not %d x %d: sides are multiples of %d from %d on",
            *(asked.prompt, width, height, asked.width, asked.height, unit, MINIMUM_SIDE),
        )
    sampler = (
        sampler_names.own_name(asked.sampler, family.prediction) or sampler_names.PREFERRED[family.prediction]
    )
    return replace(asked, width=width, height=height, sampler=sampler)


def _fitted(side: int, unit: int) -> int:
    return max(side // unit, -(-MINIMUM_SIDE // unit)) * unit


def _say_what_differs(lines: Sequence[PromptOptions], default_sampler: str, prediction: Prediction) -> None:
    asked = dict.fromkeys(line.sampler or default_sampler for line in lines)
    known = get_args(get_type_hints(PreviewConfig)["sample_sampler"])
    missing = [name for name in asked if sampler_names.own_name(name, prediction) is None]
    if missing:
        unknown = [name for name in missing if name not in known]
        hint = f" ({', '.join(unknown)} is no sampler's name)" if unknown else ""
        preferred = sampler_names.PREFERRED[prediction]
        logger.warning("previews are generated with %s instead of %s%s", preferred, ", ".join(missing), hint)
    if any(line.multipliers for line in lines):
        logger.warning("--m has no effect in --sample_prompts: the adapter that is trained acts fully")
