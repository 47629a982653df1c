"""How an image's caption is found and varied."""

from dataclasses import dataclass
from typing import Literal

from sfumato.config.checks import at_least, between
from sfumato.config.rule import implies_from


@dataclass(frozen=True)
class CaptionConfig:
    """Captions."""

    caption_extension: str = ".caption"
    """Suffix of the caption files beside the images, `.txt` for example."""

    caption_extention: str | None = None
    """Old spelling of `caption_extension`, still read."""

    caption_separator: str = ","
    """What parts a caption into tags, for shuffling, keeping and dropping."""

    shuffle_caption: bool = False
    """Put the tags in another order each time an image is seen, except those kept in front."""

    keep_tokens: int = 0
    """Number of tags at the front of a caption that are neither shuffled nor dropped."""

    keep_tokens_separator: str = ""
    """Mark inside captions, `|||` for example: what stands before it is fixed; wins over `keep_tokens`."""

    secondary_separator: str | None = None
    """Second separator, `;;;` for example: tags joined by it are shuffled and dropped together."""

    enable_wildcard: bool = False
    """Read `{a|b|c}` in a caption as a choice, and use one random line of a caption file of several."""

    caption_prefix: str | None = None
    """Text put in front of every caption."""

    caption_suffix: str | None = None
    """Text put behind every caption."""

    token_warmup_min: int = 1
    """Number of tags at the start of a run, where captions grow during training (`token_warmup_step`)."""

    token_warmup_step: float = 0
    """Steps until captions have all their tags; a value below 1 is a fraction of the run, 0 is at once."""

    caption_dropout_rate: float = 0.0
    """Probability, 0 to 1, that an image is trained with an empty caption."""

    caption_dropout_every_n_epochs: int = 0
    """In every n-th epoch all captions are empty; 0 is never."""

    caption_tag_dropout_rate: float = 0.0
    """Probability, 0 to 1, that a single tag is left out; kept tags always stay."""

    max_token_length: Literal[None, 150, 225] = None
    """Length of captions for CLIP text encoders of Stable Diffusion: 75 tokens when not given."""

    weighted_captions: bool = False
    """Read `(word:1.3)` and `[word]` in captions as emphasis."""

    def __post_init__(self) -> None:
        at_least(
            self, 0, "keep_tokens", "token_warmup_min", "token_warmup_step", "caption_dropout_every_n_epochs"
        )
        between(self, 0.0, 1.0, "caption_dropout_rate", "caption_tag_dropout_rate")


RULES = (
    implies_from(
        "caption_extention",
        lambda values: {"caption_extension": values["caption_extention"], "caption_extention": None},
        "--caption_extention is read as caption_extension: {caption_extension}",
    ),
)
"""What these options mean to others."""
