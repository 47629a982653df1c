"""What the documentation tells people to type is understood, and what it points to exists."""

import re
import shlex
from pathlib import Path

import pytest

from sfumato.cli.options.parse import parse
from sfumato.cli.scripts import script_for, script_named
from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.data.dataset import DatasetConfig
from sfumato.config.run.data.images import ImageConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.data.config import blueprint

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TOOLS = "cache-latents|cache-text|resize-images|merge-captions|clean-captions|prepare-buckets|convert|inspect"
TOOLS += "|extract-dylora|caption|upscale-images|edges|faces|mask"
START = re.compile(rf"(accelerate launch .*?sd-scripts/\w+\.py|sfumato (train|generate|{TOOLS}))\s")


SHOWN = {
    "flux_train_network",
    "flux_train",
    "flux_minimal_inference",
    "train_network",
    "train_db",
    "train_control_net",
    "sdxl_train_control_net_lllite",
    "fine_tune",
    "train_textual_inversion",
    "train_textual_inversion_XTI",
    "generate sd",
    "sdxl_train_network",
    "sdxl_train",
    "sdxl_train_textual_inversion",
    "train flux embedding",
    "train sd3 embedding",
    "generate sdxl",
    "sd3_train_network",
    "sd3_train",
    "sd3_minimal_inference",
    "inspect",
    "tools/convert_diffusers20_original_sd",
    "tools/cache_latents",
    "tools/cache_text_encoder_outputs",
    "tools/resize_images_to_resolution",
    "tools/latent_upscaler",
    "finetune/merge_captions_to_metadata",
    "finetune/clean_captions_and_tags",
    "finetune/tag_images_by_wd14_tagger",
    "finetune/make_captions",
    "finetune/make_captions_by_git",
    "caption vlm",
    "tools/canny",
    "mask",
    "tools/detect_face_rotate",
    "finetune/prepare_buckets_latents",
    "networks/extract_lora_from_dylora",
}


def commands() -> list[str]:
    """Return the indented commands of all pages that do something with models, each on one line."""
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        found += [
            line.strip()
            for line in text.splitlines()
            if line.startswith("    ") and START.match(line.strip())
        ]
    return found


def read(command: str) -> Run:
    words = shlex.split(command)
    if words[0] == "accelerate":
        number = next(number for number, word in enumerate(words) if word.startswith("sd-scripts/"))
        script, rest, as_command = script_named(Path(words[number]).name), words[number + 1 :], False
    elif words[1] == "train":
        script, rest, as_command = script_for("train", *words[2:4]), words[4:], True
    elif words[1] == "caption":
        script, rest, as_command = script_for("caption", "", words[2]), words[3:], True
    elif words[1] == "generate" and not words[2].startswith("-"):
        script, rest, as_command = script_for("generate", words[2], ""), words[3:], True
    elif words[1] == "generate":
        script, rest, as_command = script_named("flux_minimal_inference"), words[2:], True
    else:
        script, rest, as_command = script_for(words[1], "", ""), words[2:], True
    return parse(script, rest, prog="docs", as_command=as_command).run


@pytest.mark.parametrize("command", commands())
def test_command_is_understood(command: str) -> None:
    assert read(command).script in SHOWN


def test_commands_are_found() -> None:
    assert {read(command).script for command in commands()} == SHOWN


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)", page.read_text("utf-8"))
    assert [target for target in targets if "://" not in target and not (page.parent / target).exists()] == []


def test_python_examples_are_python() -> None:
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            compile(code, page.name, "exec")


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_example_data_set_is_understood(example: Path) -> None:
    run = Run(
        "flux_train_network",
        "flux",
        [DatasetConfig(dataset_config=example), CaptionConfig(), ImageConfig(), LossConfig()],
    )
    (plan,) = blueprint.plans(run)
    assert [subset.is_reg for subset in plan.subsets] == [False, True]
