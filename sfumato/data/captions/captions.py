"""From the words beside an image to the words of one training step: prefix, dropout, wildcards, shuffling.

The order of the steps and of the random draws is that of sd-scripts, so that the same generator gives the
same caption.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Stand-ins for escaped braces while wildcards are expanded; private-use characters cannot be in a caption.
_OPEN, _CLOSE = "\ue000", "\ue001"
_WILDCARD = re.compile(r"\{([^}]+)\}")


@dataclass(frozen=True)
class CaptionSettings:
    """How the captions of one subset vary from step to step.

    Attributes:
        keep_tokens: leading tags that are never shuffled or dropped.
        keep_tokens_separator: stands between fixed, flexible and again fixed tags; replaces `keep_tokens`.
        secondary_separator: stands for `caption_separator` inside a tag, so that the parts stay together.
        enable_wildcard: choose one line of several, and one of `{a|b|c}`.
        token_warmup_step: steps during which tags are added one by one; below 1 a fraction of the run.
        caption_dropout_rate: probability of an empty caption.
        caption_dropout_every_n_epochs: every n-th epoch has empty captions; 0 is never.
        caption_tag_dropout_rate: probability of losing each flexible tag.
        templates: sentences of which one takes the place of each caption that is not dropped.
    """

    shuffle_caption: bool = False
    caption_separator: str = ","
    keep_tokens: int = 0
    keep_tokens_separator: str | None = ""
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    token_warmup_min: int = 1
    token_warmup_step: float = 0
    caption_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_tag_dropout_rate: float = 0.0
    templates: tuple[str, ...] = ()

    @property
    def rearranges_tags(self) -> bool:
        """Whether captions are split into tags at all."""
        return self.shuffle_caption or self.token_warmup_step > 0 or self.caption_tag_dropout_rate > 0

    def varying(self) -> list[str]:
        """Return the names of the settings by which one image's caption differs between steps."""
        names = ("shuffle_caption", "enable_wildcard", "token_warmup_step", "caption_dropout_rate")
        names += ("caption_dropout_every_n_epochs", "caption_tag_dropout_rate")
        templates = ["templates"] if self.templates else []
        return [name for name in names if getattr(self, name) > 0] + templates


def process(
    caption: str,
    settings: CaptionSettings,
    rng: random.Random,
    *,
    epoch: int,
    step: int = 0,
    max_steps: int = 0,
    replacements: Mapping[str, str | Sequence[str]] | None = None,
) -> str:
    """Return the caption of one image in one step.

    Args:
        caption: one line, or several where wildcards are enabled.
        rng: what every choice is drawn from; nothing is drawn for features that are off.
        epoch: counted from 1.
        step: optimizer steps done, for the token warmup.
        max_steps: length of the run, for a fractional `token_warmup_step`.
        replacements: text to exchange at the end (one of several, if so); the key "" stands for the whole.
    """
    if settings.caption_prefix:
        caption = f"{settings.caption_prefix} {caption}"
    if settings.caption_suffix:
        caption = f"{caption} {settings.caption_suffix}"
    if _is_dropped(settings, rng, epoch):
        return ""
    caption = _expand(caption, rng) if settings.enable_wildcard else caption.split("\n", 1)[0]
    if settings.rearranges_tags:
        caption = _rearrange(caption, settings, rng, step, max_steps)
    if settings.secondary_separator:
        caption = caption.replace(settings.secondary_separator, settings.caption_separator)
    caption = _replace(caption, replacements or {}, rng)
    return rng.choice(settings.templates) if settings.templates else caption


def tags(caption: str, divider: str | None = None) -> list[str]:
    """Return the comma-separated tags of a caption in lower case, as statistics count them.

    Args:
        divider: `keep_tokens_separator`, which stands between tags, too, and is none.
    """
    listed = caption.replace(divider, ",") if divider else caption
    return [tag for tag in (part.strip().lower() for part in listed.split(",")) if tag]


def _is_dropped(settings: CaptionSettings, rng: random.Random, epoch: int) -> bool:
    if settings.caption_dropout_rate > 0 and rng.random() < settings.caption_dropout_rate:
        return True
    every = settings.caption_dropout_every_n_epochs
    return every > 0 and epoch % every == 0


def _expand(caption: str, rng: random.Random) -> str:
    if "\n" in caption:
        caption = rng.choice(caption.split("\n"))
    escaped = caption.replace("{{", _OPEN).replace("}}", _CLOSE)
    chosen = _WILDCARD.sub(lambda match: rng.choice(match[1].split("|")), escaped)
    return chosen.replace(_OPEN, "{").replace(_CLOSE, "}")


def _rearrange(caption: str, settings: CaptionSettings, rng: random.Random, step: int, max_steps: int) -> str:
    fixed, flexible, suffix = _divide(caption, settings)
    flexible = _warm_up(flexible, settings, step, max_steps)
    if settings.shuffle_caption:
        rng.shuffle(flexible)
    rate = settings.caption_tag_dropout_rate
    if rate > 0:
        flexible = [tag for tag in flexible if rng.random() >= rate]
    return _joint(settings.caption_separator).join(fixed + flexible + suffix)


def _joint(separator: str) -> str:
    """Return what stands between tags that were taken apart: the separator, and a blank behind it."""
    return separator if separator[-1:].isspace() else f"{separator} "


def _divide(caption: str, settings: CaptionSettings) -> tuple[list[str], list[str], list[str]]:
    """Split into fixed tags, flexible tags and fixed tags at the end."""
    comma, divider = settings.caption_separator, settings.keep_tokens_separator
    if divider and divider in caption:
        groups = [*caption.split(divider, 2), ""]
        fixed, flexible, suffix = ([t for t in _strip(group, comma) if t] for group in groups[:3])
        return fixed, flexible, suffix
    found = _strip(caption.strip(), comma)
    return found[: settings.keep_tokens], found[settings.keep_tokens :], []


def _strip(text: str, separator: str) -> list[str]:
    return [tag.strip() for tag in text.split(separator)]


def _warm_up(flexible: list[str], settings: CaptionSettings, step: int, max_steps: int) -> list[str]:
    """Keep only the first tags while the run is young."""
    warmup = settings.token_warmup_step
    if 0 < warmup < 1:
        warmup = math.floor(warmup * max_steps)
    if step >= warmup:
        return flexible
    least = settings.token_warmup_min
    return flexible[: math.floor(step * ((len(flexible) - least) / warmup)) + least]


def _replace(caption: str, replacements: Mapping[str, str | Sequence[str]], rng: random.Random) -> str:
    for old, new in replacements.items():
        if old:
            caption = caption.replace(old, new if isinstance(new, str) else rng.choice(new))
        else:
            caption = new if isinstance(new, str) else rng.choice(new)
    return caption
