"""The scripts that describe images: `sfumato caption METHOD`."""

from dataclasses import replace

from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.scripts.script import Script
from sfumato.config.tools.captioning import CaptioningConfig, TaggingConfig

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
)
