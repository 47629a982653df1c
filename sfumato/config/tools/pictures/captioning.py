"""How images get captions: which images, which files, which model, and what of its words is kept."""

from dataclasses import dataclass, field
from typing import Literal

from sfumato.config.checks import at_least, between
from sfumato.config.rule import Rule, excludes, given, idle
from sfumato.errors import UserError


@dataclass(frozen=True)
class CaptioningConfig:
    """Images to describe, and where their captions go."""

    train_data_dir: str = field(default="", metadata={"flags": ("train_data_dir",), "required": True})
    """Folder of the images."""

    batch_size: int = 1
    """Images that the model is given together."""

    max_data_loader_n_workers: int | None = None
    """Threads that decode images ahead of the model; one for each core when not given."""

    caption_extention: str | None = None
    """Old spelling of `caption_extension`, still read."""

    caption_extension: str = ".caption"
    """Suffix of the caption files beside the images."""

    recursive: bool = False
    """Take in the folders below, too."""

    debug: bool = False
    """Show each image with its caption."""

    skip_existing: bool = False
    """Leave out images that have a caption already: what was stopped goes on where it was."""

    trigger_word: str = ""
    """Word to put in front of each caption, as a tag of its own, unless it is there."""

    text_before: str = ""
    """Text to begin each caption with."""

    text_behind: str = ""
    """Text to end each caption with."""

    dry_run: bool = False
    """Show the captions of the first ten images, and write nothing."""

    undo: bool = False
    """Bring back the captions that the last call with this folder replaced, and remove those it made."""

    def __post_init__(self) -> None:
        at_least(self, 1, "batch_size")
        at_least(self, 0, "max_data_loader_n_workers")

    @property
    def suffix(self) -> str:
        """What the names of caption files end in."""
        extension = self.caption_extention or self.caption_extension
        return extension if extension.startswith(".") else f".{extension}"


@dataclass(frozen=True)
class TaggingConfig:
    """A tagger, and which of its tags are kept."""

    repo_id: str = "SmilingWolf/wd-v1-4-convnext-tagger-v2"
    """Tagger: a folder, or a name on the Hub (`user/name`, or `user/name/folder` for one in a folder)."""

    model_dir: str = "wd14_tagger_model"
    """Folder in which taggers are kept, each below its name."""

    force_download: bool = False
    """Ask the Hub for the tagger again, although it is in `model_dir`."""

    onnx: bool = False
    """Run the tagger in onnxruntime, which is always done."""

    thresh: float = 0.35
    """Least probability of a tag that is kept."""

    general_threshold: float | None = None
    """The same for general tags; `thresh` when not given."""

    character_threshold: float | None = None
    """The same for names of characters; `thresh` when not given."""

    copyright_threshold: float | None = None
    """The same for names of works, which some taggers know; `thresh` when not given."""

    artist_threshold: float | None = None
    """The same for names of artists, which some taggers know; `thresh` when not given."""

    meta_threshold: float | None = None
    """The same for tags about the file, which some taggers know; `thresh` when not given."""

    model_threshold: float | None = None
    """The same for names of image models, which some taggers know; `thresh` when not given."""

    use_rating_tags: bool = False
    """Put the likeliest rating first."""

    use_rating_tags_as_last_tag: bool = False
    """Put the likeliest rating last."""

    use_quality_tags: bool = False
    """Put the likeliest quality first, if the tagger knows any."""

    use_quality_tags_as_last_tag: bool = False
    """Put the likeliest quality last, if the tagger knows any."""

    character_tags_first: bool = False
    """Put names of characters in front of other tags."""

    character_tag_expand: bool = False
    """Make two tags of the name of a character and its work: `name_(work)` becomes `name, work`."""

    remove_underscore: bool = False
    """Put blanks in place of underscores, but for tags of three characters and less, such as `o_o`."""

    tag_replacement: str | None = None
    r"""Tags to replace, as `old,new;old,new`; write `\,` and `\;` for these characters within a tag."""

    undesired_tags: str = ""
    """Tags to leave out, as they are written in captions, with separators between them."""

    always_first_tags: str | None = None
    """Tags to move to the front if they are found, with separators between them; the last comes first."""

    caption_separator: str = ", "
    """What stands between tags."""

    append_tags: bool = False
    """Add new tags behind those that the caption has, instead of replacing it."""

    frequency_tags: bool = False
    """Show how many images got each tag."""

    output_path: str | None = None
    """File ending in .json or .jsonl to write all captions to, instead of files beside the images."""

    def __post_init__(self) -> None:
        between(self, 0, 1, "thresh", "general_threshold", "character_threshold", "copyright_threshold")
        between(self, 0, 1, "artist_threshold", "meta_threshold", "model_threshold")
        if not self.caption_separator.strip():
            raise UserError("--caption_separator is blank; tags hold blanks, so that it has to have a mark")
        if self.output_path and not self.output_path.lower().endswith((".json", ".jsonl")):
            raise UserError(f"--output_path is {self.output_path}; end it in .json or .jsonl")


@dataclass(frozen=True)
class BlipConfig:
    """BLIP, and how it chooses words."""

    caption_weights: str = (
        "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models/model_large_caption.pth"
    )
    """BLIP for captions: a name on the Hub, a folder, or a .pth file; the default is the large one."""

    beam_search: bool = False
    """Take the likeliest sentence, instead of drawing words."""

    num_beams: int = 1
    """Sentences that are followed at once, with `beam_search`."""

    top_p: float = 0.9
    """Draw from the likeliest words, of this probability together."""

    max_length: int = 75
    """Most tokens of a caption."""

    min_length: int = 5
    """Fewest tokens of a caption."""

    seed: int = 42
    """Number that the draws follow from."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_beams", "max_length", "min_length")
        between(self, 0, 1, "top_p")


@dataclass(frozen=True)
class GitConfig:
    """GIT, and what is kept of its words."""

    model_id: str = "microsoft/git-large-textcaps"
    """GIT for captions: a name on the Hub, or a folder."""

    max_length: int = 50
    """Most tokens of a caption."""

    remove_words: bool = False
    """Leave out what a caption says of writing in the image: words, letters, names, numbers."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_length")


@dataclass(frozen=True)
class InstructedConfig:
    """A vision-language model, and what it is told to write."""

    model: str = field(default="", metadata={"required": True})
    """Model of transformers that answers questions about images: a name on the Hub, or a folder."""

    prompt: str = "Describe this image in one sentence."
    """What the model is told; `{caption}` stands for the caption that an image has already."""

    max_new_tokens: int = 256
    """Most tokens of a caption."""

    temperature: float = 0.0
    """How freely words are drawn; 0 takes the likeliest ones."""

    seed: int = 42
    """Number that the draws follow from."""

    dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """Dtype of the model; `auto` is that of its files."""

    def __post_init__(self) -> None:
        at_least(self, 1, "max_new_tokens")
        at_least(self, 0, "temperature")
        if not self.prompt:
            raise UserError("--prompt is empty; write what the model shall do")


BLIP = (
    idle(["num_beams"], given("beam_search")),
    Rule(("top_p",), "idle", "the likeliest words are taken", among=(given("beam_search"),)),
)
"""What the options of `BlipConfig` mean to each other."""

TAGGING = (excludes(["append_tags"], ["output_path"], "one file gets all captions anew"),)
"""What the options of `TaggingConfig` mean to each other."""
