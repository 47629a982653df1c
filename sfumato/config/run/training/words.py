"""A new word, its vectors, and the sentences that it is learned in."""

from dataclasses import dataclass

from sfumato.config.checks import at_least
from sfumato.config.rule import Rule, given, idle
from sfumato.errors import UserError


@dataclass(frozen=True)
class WordsConfig:
    """The new word."""

    weights: str | None = None
    """Embedding file to go on from; it has as many vectors as are asked for."""

    num_vectors_per_token: int = 1
    """Vectors of the new word, each of which takes the place of one token in prompts."""

    token_string: str | None = None
    """The new word, as it stands in captions and prompts; none that the text encoder knows."""

    init_word: str | None = None
    """Known words whose vectors the new ones start from, in turn; small random numbers otherwise."""

    use_object_template: bool = False
    """Train with sentences like 'a photo of a WORD' instead of captions."""

    use_style_template: bool = False
    """Train with sentences like 'a painting in the style of WORD' instead of captions."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_vectors_per_token")


@dataclass(frozen=True)
class JoinedWordConfig:
    """A new word beside the adapter."""

    train_words: str | None = None
    """New word that is learned along with the adapter, as it stands in captions and prompts."""

    train_words_vectors: int = 1
    """Vectors of that word."""

    train_words_init: str | None = None
    """Known words whose vectors it starts from, in turn; small random numbers otherwise."""

    train_words_lr: float | None = None
    """Learning rate of the word; `learning_rate` when not given."""

    bundle_words: bool = False
    """Put the word into the adapter's file (as `bundle_emb`) instead of a file of its own."""

    def __post_init__(self) -> None:
        at_least(self, 1, "train_words_vectors")
        if not self.bundle_words and set(self.train_words or "") & set("/\\"):
            raise UserError(
                f"--train_words is {self.train_words!r}, which cannot name a file; choose another word, or "
                "put it into the adapter's file with --bundle_words"
            )


JOINED_RULES = (
    idle(["train_words_vectors", "train_words_init", "train_words_lr", "bundle_words"], given("train_words")),
)
"""What these options mean to others."""

RULES = (
    idle(["use_style_template"], among=(given("use_object_template"),)),
    idle(["init_word"], among=(given("weights"),)),
    Rule(
        ("token_string",),
        "implies",
        "--output_name is that of the word: {output_name}",
        without=(given("output_name"),),
        sets=lambda values: {"output_name": values["token_string"]},
    ),
)
"""What these options mean to others."""
