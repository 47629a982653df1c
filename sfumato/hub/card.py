"""Model cards: README.md with the header that the Hub reads (https://huggingface.co/docs/hub/model-cards)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MARK = "<!-- written by sfumato train --model_card -->"
"""Tells a card of ours, which a later run may replace."""


@dataclass(frozen=True)
class Sample:
    """A preview: its prompt, and its file's place beside the card, with `/`."""

    prompt: str
    place: str


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        base: the base model as the user named it.
        base_on_hub: its repository, where it is on the Hub.
        licence: as the user gives it; that of the base is not known here.
        triggers: words of a prompt that call it up.
        tags: keywords.
        settings: how it was trained, by names of options.
        files: that belong to it.
    """

    title: str
    description: str | None
    base: str
    base_on_hub: str | None
    licence: str | None
    triggers: Sequence[str]
    tags: Sequence[str]
    settings: Mapping[str, object]
    files: Sequence[str] = ()
    samples: Sequence[Sample] = ()

    def text(self) -> str:
        """Return the card as Markdown."""
        parts = [self._header(), MARK, f"# {_plain(self.title)}", self.description or ""]
        parts += [self._base(), self._triggers(), self._files(), self._samples(), self._settings()]
        return "\n\n".join(filter(None, parts)) + "\n"

    def _header(self) -> str:
        """Return the YAML header; JSON's values are YAML's."""
        known = {
            "license": self.licence,
            "base_model": self.base_on_hub,
            "instance_prompt": ", ".join(self.triggers) or None,
            "pipeline_tag": "text-to-image",
            "tags": [*self.tags],
            "widget": [{"text": s.prompt, "output": {"url": s.place}} for s in self.samples] or None,
        }
        lines = [f"{name}: {json.dumps(value)}" for name, value in known.items() if value is not None]
        return "\n".join(["---", *lines, "---"])

    def _base(self) -> str:
        base = f"[{self.base}](https://huggingface.co/{self.base_on_hub})" if self.base_on_hub else self.base
        licence = self.licence or "not given; that of the base model binds in any case"
        return f"Base model: {base}. Licence: {licence}."

    def _triggers(self) -> str:
        words = ", ".join(f"`{word}`" for word in self.triggers)
        return f"Trigger words: {words}" if words else ""

    def _files(self) -> str:
        return "## Files\n\n" + "\n".join(f"- `{file}`" for file in self.files) if self.files else ""

    def _samples(self) -> str:
        shown = "\n\n".join(f"![{_plain(s.prompt)}]({s.place})\n\n{_plain(s.prompt)}" for s in self.samples)
        return f"## Samples\n\n{shown}" if shown else ""

    def _settings(self) -> str:
        rows = "\n".join(f"| {name} | {_plain(str(value))} |" for name, value in self.settings.items())
        return f"## Training\n\n| setting | value |\n|---|---|\n{rows}" if rows else ""


def _plain(text: str) -> str:
    """Return a text that Markdown shows as it is, on one line."""
    return " ".join("".join(f"\\{char}" if char in "\\`*_[]<>|#!" else char for char in text).split())
