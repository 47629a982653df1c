"""Variants in prompts: `a {red|blue} car` is one of two.

The whole form is `{e$$n-m$$separator$$a|b|c}`. `n$$` or `n-m$$` says how many of them are taken (1 otherwise)
and the separator what joins them (`, ` otherwise); `e$$` makes a prompt of each possible choice instead of
drawing one. Groups nest, the innermost is decided first; `\\{` and `\\}` are braces that mean nothing.
"""

from __future__ import annotations

import itertools
import logging
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sfumato.errors import UserError

logger = logging.getLogger(__name__)

MOST = 10_000
"""Prompts that one may make by enumeration."""

# Stand-ins for escaped braces while groups are decided; private-use characters cannot be in a prompt.
_OPEN, _CLOSE, _MARK = "\ue000", "\ue001", "\ue002"
_GROUP = re.compile(r"\{([^{}]+)\}")
_ASIDE = re.compile(rf"{_MARK}(\d+){_MARK}")
_EACH = re.compile(r"e\$\$", re.IGNORECASE)
_COUNT = re.compile(r"(\d+)(?:-(\d+))?\$\$")
_BROKEN_COUNT = re.compile(r"\d*-\d*\$\$")


def has_variants(text: str) -> bool:
    """Tell whether there is anything to choose in a text."""
    return _GROUP.search(_hidden(text)) is not None


def enumerated(text: str) -> list[str]:
    """Return a text for each choice in its groups that begin with `e$$`; the first group changes slowest.

    Other groups are left for `drawn` or `drawn_for_seed`.

    Raises:
        UserError: there are more than `MOST` choices.
    """
    found = list(itertools.islice(_enumerated(_hidden(text)), MOST + 1))
    if len(found) > MOST:
        raise UserError(f"prompt '{text}' makes more than {MOST:,} prompts; enumerate fewer variants")
    return [one.replace(_OPEN, r"\{").replace(_CLOSE, r"\}") for one in found]


def drawn(text: str, rng: random.Random) -> str:
    """Return a text with a choice in each group, drawn from left to right, as scripts do that seed Python."""
    return _decided(text, lambda: rng, _from_left)


def drawn_for_seed(text: str, seed: int) -> str:
    """Return a text with choices that belong to the seed of its image.

    They are drawn from right to left, anew for each depth of nesting, as newer versions of sd-scripts do.
    """
    return _decided(text, lambda: random.Random(seed), _from_right)


Order = Callable[[str, random.Random], str]
"""Decides all innermost groups of a text."""


def _decided(text: str, rng: Callable[[], random.Random], decide: Order) -> str:
    text = _hidden(text)
    while _GROUP.search(text):
        text = decide(text, rng())
    return text.replace(_OPEN, "{").replace(_CLOSE, "}")


def _from_left(text: str, rng: random.Random) -> str:
    return _GROUP.sub(lambda match: _Group.read(match[1]).draw(rng), text)


def _from_right(text: str, rng: random.Random) -> str:
    for match in reversed(list(_GROUP.finditer(text))):
        text = text[: match.start()] + _Group.read(match[1]).draw(rng) + text[match.end() :]
    return text


def _hidden(text: str) -> str:
    return text.replace(r"\{", _OPEN).replace(r"\}", _CLOSE)


def _enumerated(text: str) -> Iterator[str]:
    """Yield a text for each choice. Groups to draw from are put aside, with marks in their places."""
    waiting: list[tuple[str, tuple[str, ...]]] = [(text, ())]
    while waiting:
        text, aside = waiting.pop()
        match = _GROUP.search(text)
        if match is None:
            yield _with_groups(text, aside)
            continue
        if _EACH.match(match[1]):
            choices = list(itertools.islice(_Group.read(match[1]).every(), MOST + 1))
        else:
            choices, aside = [f"{_MARK}{len(aside)}{_MARK}"], (*aside, match[0])
        before, after = text[: match.start()], text[match.end() :]
        waiting += [(before + choice + after, aside) for choice in reversed(choices)]


def _with_groups(text: str, aside: tuple[str, ...]) -> str:
    while _MARK in text:  # a group may hold others
        text = _ASIDE.sub(lambda match: aside[int(match[1])], text)
    return text


@dataclass(frozen=True)
class _Group:
    """One pair of braces.

    Attributes:
        least, most: how many variants are taken.
        joint: stands between them.
    """

    variants: tuple[str, ...]
    least: int = 1
    most: int = 1
    joint: str = ", "

    @classmethod
    def read(cls, body: str) -> _Group:
        """Read what stands between braces."""
        body = _EACH.sub("", body, count=1) if _EACH.match(body) else body
        bounds = 1, 1
        if match := _COUNT.match(body):
            bounds = int(match[1]), int(match[2] or match[1])
        elif match := _BROKEN_COUNT.match(body):
            logger.warning("{%s}: %s is no number of variants, and one is taken", body, match[0][:-2])
        rest = body[match.end() :] if match else body
        joint, is_given, listed = rest.rpartition("$$")
        variants = tuple(listed.split("|"))
        least, most = (min(bound, len(variants)) for bound in sorted(bounds))
        return cls(variants, least, most, joint if is_given else ", ")

    def draw(self, rng: random.Random) -> str:
        """Take as many as one draw says, in the order of another."""
        return self.joint.join(rng.sample(self.variants, rng.randint(self.least, self.most)))

    def every(self) -> Iterator[str]:
        """Yield every choice, those of fewer variants first."""
        for number in range(self.least, self.most + 1):
            for choice in itertools.combinations(self.variants, number):
                yield self.joint.join(choice)
