"""The scripts that describe images: `sfumato caption METHOD`."""

from dataclasses import replace

from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.scripts.script import Script, names
from sfumato.config.tools.pictures.captioning import (
    BlipConfig,
    CaptioningConfig,
    GitConfig,
    InstructedConfig,
    TaggingConfig,
)

_TAGGER = Script(
    name="finetune/tag_images_by_wd14_tagger",
    summary="Tag images with a tagger in an ONNX file.",
    command="caption",
    method="tags",
    sections=(CaptioningConfig, TaggingConfig, HubAccessConfig),
    overrides={"caption_extension": ".txt"},
    without_effect={"onnx": "taggers always run in onnxruntime, never in TensorFlow"},
)

CAPTION_TOOLS: tuple[Script, ...] = (
    # Its name in the readme of sd-scripts; the row that comes last answers for the sub-command.
    replace(_TAGGER, name="finetune/tag_image_by_wd14_tagger"),
    _TAGGER,
    Script(
        name="finetune/make_captions",
        summary="Describe images in a sentence, with BLIP.",
        command="caption",
        method="blip",
        sections=(CaptioningConfig, BlipConfig, HubAccessConfig),
    ),
    Script(
        name="finetune/make_captions_by_git",
        summary="Describe images in a sentence, with GIT.",
        command="caption",
        method="git",
        sections=(CaptioningConfig, GitConfig, HubAccessConfig),
        absent=names("caption_extention"),
    ),
    Script(
        name="caption vlm",
        summary="Describe images as a vision-language model is told to.",
        command="caption",
        method="vlm",
        is_drop_in=False,
        sections=(CaptioningConfig, InstructedConfig, HubAccessConfig),
        absent=names("caption_extention"),
    ),
)
