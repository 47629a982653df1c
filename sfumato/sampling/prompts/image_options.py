"""The 28 options of gen_img's prompt lines: `a cat --w 512 --d 1,2 --nl 0.5 --dsd1 3`.

They are read as that script reads them: a value that is none leaves the option out, and what stands behind a
value is not read; both are a warning here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from sfumato.sampling.prompts.lines import split_line
from sfumato.sampling.prompts.prompt_options import MAX_STEPS
from sfumato.sampling.request import Request
from sfumato.sampling.settings.deep_shrink import DeepShrink
from sfumato.sampling.settings.gradual_latent import GradualLatent, UnsharpMask
from sfumato.sampling.settings.sizes import SizeConditions

logger = logging.getLogger(__name__)

Said = Mapping[str, Any]
"""Values by the names of fields, without those that were not said."""


@dataclass(frozen=True)
class ImageOptions:
    """What one line says.

    Attributes:
        image: fields of `Request`; `multipliers` may be fewer or more than there are adapters.
        sizes: fields of `SizeConditions`.
        deep_shrink, gradual_latent: fields of the classes of these names.
        seeds: of the line's images, one after the other.
        file_name: of the line's first image, instead of one that is made up.
    """

    prompt: str
    image: Said = field(default_factory=dict)
    sizes: Said = field(default_factory=dict)
    deep_shrink: Said = field(default_factory=dict)
    gradual_latent: Said = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    file_name: str | None = None

    def request(
        self,
        defaults: Request,
        deep_shrink: DeepShrink = DeepShrink(),  # noqa: B008 (frozen)
        gradual_latent: GradualLatent = GradualLatent(),  # noqa: B008 (frozen)
    ) -> Request:
        """Return what an image of the line is made with.

        Args:
            defaults: what the line leaves open; in gen_img, deep shrink and gradual latent stay as the line
                before had them, and all else is as the command line says.
            deep_shrink, gradual_latent: what the options of these complete where the line has any.
        """
        said = {**self.image, "prompt": self.prompt}
        if "multipliers" in said:
            said["multipliers"] = _stretched(said["multipliers"], len(defaults.multipliers or ()))
            if given := self.image["multipliers"][len(said["multipliers"]) :]:
                logger.warning(
                    "prompt option --am is of no network from %g on; give as many networks", given[0]
                )
        if self.sizes:
            said["sizes"] = replace(defaults.sizes or SizeConditions(), **self.sizes)
        if self.deep_shrink:
            said["deep_shrink"] = replace(deep_shrink, **self.deep_shrink)
        if self.gradual_latent:
            said["gradual_latent"] = replace(gradual_latent, **self.gradual_latent)
        return replace(defaults, **said)


def parse_image_line(line: str) -> ImageOptions:
    """Read a prompt with options of gen_img behind it; the last of equal options counts."""
    prompt, pieces = split_line(line, _OPTIONS, _BEFORE_A_NAME)
    said: dict[str, dict[str, Any]] = {part: {} for part in _PARTS}
    for name, text in pieces:
        option = _OPTIONS[name]
        try:
            said[option.of][option.field] = option.read(name, text)
        except ValueError:
            logger.warning("prompt option --%s is left out: its value is '%s'", name, text)
    of_line = said.pop("line")
    return ImageOptions(prompt, **said, **of_line)


def seeds_of(line: str) -> tuple[int, ...]:
    """Return the seeds that a line gives, as far as they stand outside of variants."""
    said = _SEEDS.findall(line)
    try:
        return _whole_numbers(said[-1]) if said else ()
    except ValueError:
        return ()


def parse_unsharp(text: str) -> UnsharpMask:
    """Read `kernel,sigma,strength`, and perhaps 0 for what goes into a step or 1 for what comes out of it.

    Raises:
        ValueError: the text is something else.
    """
    kernel, sigma, strength, *rest = text.split(",")
    if len(rest) > 1:
        raise ValueError(text)
    return UnsharpMask(int(kernel), float(sigma), float(strength), *(bool(int(flag)) for flag in rest))


def _stretched(given: Sequence[float], number: int) -> tuple[float, ...]:
    """Return as many numbers, the last one again and again where there are too few."""
    return tuple(given[min(place, len(given) - 1)] for place in range(number))


_Part = Literal["image", "sizes", "deep_shrink", "gradual_latent", "line"]
_PARTS: tuple[_Part, ...] = get_args(_Part)


@dataclass(frozen=True)
class _Option:
    """One option: a field of a part of what a line says, and how its text is read.

    Attributes:
        pattern: of the value at the start of the text.
    """

    of: _Part
    field: str
    pattern: str
    convert: Callable[[str], Any]

    def read(self, name: str, text: str) -> Any:
        """Return the value at the start of a text; raise ValueError if there is none."""
        match = re.match(self.pattern, text, re.IGNORECASE)
        if match is None:
            raise ValueError(text)
        if text[match.end() :].strip():
            logger.warning("prompt option --%s is '%s'; only '%s' of it is read", name, text, match[0])
        return self.convert(match[0])


def _steps(text: str) -> int:
    return min(max(int(text), 1), MAX_STEPS)


def _none_or_number(text: str) -> float | None:
    return None if text.lower() == "none" else float(text)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(map(float, text.split(",")))


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


_SEEDS = re.compile(r" --d ([\d,]+)", re.IGNORECASE)
_BEFORE_A_NAME = re.compile(" --")
_DIGITS, _DECIMAL, _ANYTHING = r"\d+", r"[\d.]+", ".+"
_OPTIONS: Mapping[str, _Option] = {
    "w": _Option("image", "width", _DIGITS, int),
    "h": _Option("image", "height", _DIGITS, int),
    "ow": _Option("sizes", "original_width", _DIGITS, int),
    "oh": _Option("sizes", "original_height", _DIGITS, int),
    "nw": _Option("sizes", "original_width_negative", _DIGITS, int),
    "nh": _Option("sizes", "original_height_negative", _DIGITS, int),
    "ct": _Option("sizes", "crop_top", _DIGITS, int),
    "cl": _Option("sizes", "crop_left", _DIGITS, int),
    "s": _Option("image", "steps", _DIGITS, _steps),
    "d": _Option("line", "seeds", r"[\d,]+", _whole_numbers),
    "l": _Option("image", "cfg_scale", _DECIMAL, float),
    "nl": _Option("image", "negative_scale", rf"{_DECIMAL}|none", _none_or_number),
    "t": _Option("image", "strength", _DECIMAL, float),
    "n": _Option("image", "negative_prompt", _ANYTHING, str),
    "c": _Option("image", "clip_prompt", _ANYTHING, str),
    "am": _Option("image", "multipliers", r"[\d.,-]+", _numbers),
    "dsd1": _Option("deep_shrink", "depth_1", _DECIMAL, int),
    "dst1": _Option("deep_shrink", "timesteps_1", _DECIMAL, int),
    "dsd2": _Option("deep_shrink", "depth_2", _DECIMAL, int),
    "dst2": _Option("deep_shrink", "timesteps_2", _DECIMAL, int),
    "dsr": _Option("deep_shrink", "ratio", _DECIMAL, float),
    "glt": _Option("gradual_latent", "timesteps", _DECIMAL, int),
    "glr": _Option("gradual_latent", "ratio", _DECIMAL, float),
    "gle": _Option("gradual_latent", "every_n_steps", _DECIMAL, int),
    "gls": _Option("gradual_latent", "ratio_step", _DECIMAL, float),
    "glsn": _Option("gradual_latent", "s_noise", _DECIMAL, float),
    "glus": _Option("gradual_latent", "unsharp", r"[\d.,-]+", parse_unsharp),
    "f": _Option("line", "file_name", _ANYTHING, str),
}
