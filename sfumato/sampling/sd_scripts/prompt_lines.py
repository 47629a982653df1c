"""Where prompt lines come from: a file, the command line, the texts of PNG images, or somebody's module."""

from __future__ import annotations

import argparse
import importlib.util
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image, UnidentifiedImageError

from sfumato.config.run.image_scripts.prompts import PromptSourceConfig
from sfumato.errors import UserError, guest_code
from sfumato.sampling.prompts.files import prompt_lines


@dataclass(frozen=True)
class Place:
    """How far a run is, when it asks for its next line.

    Attributes:
        line: number of the line in this round, from 0.
        image: number of the image in this round, from 0.
        round_seed: the seed that all images of this round have, if they share one.
        seeds: what seeds are drawn from; a module may draw from it, too.
    """

    line: int
    image: int
    round_seed: int | None
    seeds: random.Random


class PromptLines(Protocol):
    """A source of prompt lines that is gone through once or several times."""

    @property
    def num_lines(self) -> int | None:
        """How many lines there are, if that is known beforehand."""
        ...

    def shuffle(self, rng: random.Random) -> None:
        """Bring the lines into another order."""
        ...

    def line(self, place: Place) -> str | None:
        """Return the line at a place; None at the end."""
        ...


class ListedLines:
    """Lines that are all known beforehand."""

    def __init__(self, lines: Iterable[str]) -> None:
        self._lines = list(lines)

    @property
    def num_lines(self) -> int:
        """How many lines there are."""
        return len(self._lines)

    def shuffle(self, rng: random.Random) -> None:
        """Bring the lines into another order."""
        rng.shuffle(self._lines)

    def line(self, place: Place) -> str | None:
        """Return the line at a place; None behind the last."""
        return self._lines[place.line] if place.line < len(self._lines) else None


class ModuleLines:
    """Lines that a Python file makes: `--from_module`.

    Its `get_prompter(args, pipe, networks)` returns what is called with `args, pipe, seed_random, iter_seed,
    prompt_index, global_step` for each line, and may have `__len__` and `shuffle`.

    Args:
        options: all options of the run, as the file reads them from `args`.
        pipe, networks: what makes the images, and the adapters at work.
    """

    def __init__(self, path: Path, options: Mapping[str, Any], pipe: object, networks: Sequence[Any]) -> None:
        self._what = f"--from_module {path}"
        self._args = argparse.Namespace(**options)
        self._pipe = pipe
        if not path.is_file():
            raise UserError(f"{self._what}: there is no such file; check the path")
        with guest_code(f"{self._what} failed", "mend it"):
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            self._prompter: Any = module.get_prompter(self._args, pipe, networks)

    @property
    def num_lines(self) -> int | None:
        """How many lines there are, if the file tells."""
        return len(self._prompter) if hasattr(self._prompter, "__len__") else None

    def shuffle(self, rng: random.Random) -> None:
        """Ask the file for another order, if it knows one."""
        if not hasattr(self._prompter, "shuffle"):
            raise UserError(f"--shuffle_prompts: what {self._what} makes has no method shuffle; leave it out")
        with guest_code(f"{self._what}: shuffle failed", "mend it"):
            self._prompter.shuffle()

    def line(self, place: Place) -> str | None:
        """Return the line that the file makes; None if it has no more."""
        with guest_code(f"{self._what} failed at prompt {place.line}", "mend it"):
            return self._prompter(
                *(self._args, self._pipe, place.seeds, place.round_seed, place.line, place.image)
            )


def lines_for(
    config: PromptSourceConfig,
    images: Sequence[Path],
    options: Mapping[str, Any],
    pipe: object,
    networks: Sequence[Any],
) -> PromptLines | None:
    """Return where the lines of a run come from; None if they are typed in.

    Args:
        images: that the run starts from; they tell the prompts if nothing else does.
        options, pipe, networks: as `ModuleLines` has them.

    Raises:
        UserError: a file is missing or holds no prompt.
    """
    if config.interactive:
        return None
    if config.from_file is not None:
        return ListedLines(_file_lines(Path(config.from_file)))
    if config.from_module is not None:
        return ModuleLines(Path(config.from_module), options, pipe, networks)
    if config.prompt is not None:
        return ListedLines([config.prompt])
    told = [line for path in images if (line := line_of_image(path)) is not None]
    return ListedLines(told) if told else None


def line_of_image(path: Path) -> str | None:
    """Return the prompt line that a PNG image tells; None if it tells none.

    Raises:
        UserError: the file is no image.
    """
    try:
        with Image.open(path) as image:
            texts: Mapping[Any, Any] = dict(image.info)
    except (OSError, UnidentifiedImageError) as error:
        raise UserError(f"{path} cannot be read as an image: {error}; check the path") from None
    if not isinstance(texts.get("prompt"), str):
        return None
    negative = texts.get("negative-prompt")
    return f"{texts['prompt']} --n {negative}" if negative else texts["prompt"]


def _file_lines(path: Path) -> list[str]:
    try:
        lines = prompt_lines(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"--from_file {path} cannot be read: {error.strerror}; check the path") from None
    except ValueError:
        raise UserError(f"--from_file {path} is no text in UTF-8; save it as such") from None
    if not lines:
        raise UserError(f"--from_file {path} holds no prompt; write one a line")
    return lines
