"""Run files of other trainers: what becomes of each setting, and what is said of the rest."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from sfumato.config.toml_text import parse
from sfumato.config.tools.importing import ImportingConfig
from sfumato.errors import UserError
from sfumato.tools.importing.importing import import_run
from sfumato.tools.importing.translation import flatten

FILES = Path(__file__).parents[2] / "compat" / "other_trainers"
LORA = {
    "network_alpha": 2,
    "network_dim": 4,
    "learning_rate": 1e-4,
    "mixed_precision": "bf16",
    "strict": False,
}
EXPECTED: dict[str, dict[str, Any]] = {
    "kohya_ss.json": {
        **LORA,
        "network_module": "networks.lora",
        "network_args": ["conv_dim=2", "conv_alpha=1"],
        "optimizer_type": "AdamW",
        "optimizer_args": ["weight_decay=0.1", "betas=0.9,0.99"],
        "resolution": "64,64",
        "max_train_epochs": 1,
        "lr_warmup_steps": 0.1,
        "sdpa": True,
        "train_data_dir": "<DATA>",
    },
    "onetrainer.json": {
        **LORA,
        "network_alpha": 1,
        "learning_rate": 3e-4,
        "text_encoder_lr": [1e-4],
        "min_snr_gamma": 5.0,
        "noise_offset": 0.05,
        "output_dir": "<OUT>",
        "output_name": "mine",
        "save_model_as": "safetensors",
        "save_precision": "fp16",
        "lr_warmup_steps": 200,
        "lr_scheduler": "constant_with_warmup",
        "optimizer_args": ["weight_decay=0.01", "eps=1e-08", "betas=0.9,0.999"],
    },
    "ai_toolkit.yaml": {
        **LORA,
        "output_dir": "<OUT>/mine",
        "output_name": "mine",
        "network_train_unet_only": True,
        "save_every_n_steps": 1,
        "save_last_n_steps": 3,
        "max_train_steps": 1,
        "cache_latents": True,
    },
    "simpletuner.json": {
        **LORA,
        "network_alpha": 4,
        "max_train_steps": 1,
        "save_last_n_steps": 1000,
        "caption_dropout_rate": 0.1,
        "seed": 42,
        "lr_scheduler": "polynomial",
        "gradient_checkpointing": True,
    },
}
"""What run files say, among other things."""

LEFT = {
    "kohya_ss.json": "  stop_text_encoder_training = 50",
    "onetrainer.json": "  sample_after_unit = MINUTE",
    "ai_toolkit.yaml": "  sample.sampler = ddpm",
    "simpletuner.json": "  base_model_precision = int8-quanto",
}
SIDES = {"resolution": 64, "min_bucket_reso": 32, "max_bucket_reso": 128}
SUBSET = {"image_dir": "<IMAGES>", "caption_extension": ".txt"}
DATASETS: dict[str, list[dict[str, Any]]] = {
    "onetrainer.json": [
        {
            **SIDES,
            "subsets": [
                {**SUBSET, "num_repeats": 2, "flip_aug": True, "shuffle_caption": True, "keep_tokens": 1}
            ],
        }
    ],
    "ai_toolkit.yaml": [
        {
            **{name: side * factor for name, side in SIDES.items()},
            "subsets": [{**SUBSET, "caption_dropout_rate": 0.05}],
        }
        for factor in (1, 2)
    ],
    "simpletuner.json": [{**SIDES, "subsets": [{**SUBSET, "num_repeats": 2}]}],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FILES, tmp_path / "files"))


def imported(file: Path, output: str | None = None) -> str:
    """Import a run; return what is shown."""
    return import_run(ImportingConfig(str(file), output))


@pytest.mark.parametrize("name", EXPECTED)
def test_settings_become_options_and_the_rest_is_told(name: str, folder: Path) -> None:
    shown = imported(folder / name)
    out = folder / f"{Path(name).stem}.sfumato.toml"
    text = out.read_text("utf-8")
    options = parse(text)
    assert {key: options.get(key) for key in EXPECTED[name]} == EXPECTED[name]
    assert LEFT[name] in shown
    assert f"# {LEFT[name]}" in text
    assert shown.endswith(f"run: sfumato train sd lora --config_file {out}")
    assert "s3cret" not in text + shown
    if name in DATASETS:
        assert parse(Path(options["dataset_config"]).read_text("utf-8"))["datasets"] == DATASETS[name]


def test_prompts_of_previews_become_lines(folder: Path) -> None:
    imported(folder / "ai_toolkit.yaml", str(folder / "my.toml"))
    line = "a photo of a cat --n blurry --w 64 --h 64 --s 2 --l 4 --d 42\n"
    assert (folder / "my.prompts.txt").read_text("utf-8") == line


def test_shell_variables_are_read_as_the_options_that_they_become(folder: Path) -> None:
    (folder / "config.env").write_text(
        "# my run\nexport MODEL_TYPE='lora'\nexport MODEL_FAMILY=sdxl  # remark\nexport LORA_RANK=8\n"
        "MODEL_NAME='a/b c'\nexport RESOLUTION=1\nexport RESOLUTION_TYPE=\"area\"\n",
        "utf-8",
    )
    imported(folder / "config.env")
    options = parse((folder / "config.sfumato.toml").read_text("utf-8"))
    found = [options[key] for key in ("pretrained_model_name_or_path", "network_dim", "resolution")]
    assert found == ["a/b c", 8, 1000]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", '{"a": 1}', "is of no trainer that is known"),
        ("a.json", "{", "is damaged: Expecting property name"),
        ("a.json", "[1]", "holds no settings"),
        ("a.ini", "", "it must be .json, .yaml, .yml or .env"),
        ("b.json", None, "does not exist"),
        ("deep.json", '{"a": ' + "[" * 100_000, "is nested more than 100 levels deep"),
        ("a.json", '{"LoRA_type": "Standard", "sd3_checkbox": true}', "trains Stable Diffusion 3"),
        (
            "a.json",
            '{"training_method": "LORA", "model_type": "WUERSTCHEN_2"}',
            "trains LORA of WUERSTCHEN_2",
        ),
    ],
)
def test_a_file_that_cannot_be_taken_over_is_one_line(
    name: str, text: str | None, said: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        imported(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_run_file_that_is_there_is_kept(folder: Path) -> None:
    imported(folder / "kohya_ss.json")
    with pytest.raises(UserError, match="is there already; give another name as --output"):
        imported(folder / "kohya_ss.json")


def test_what_asks_for_nothing_is_no_setting() -> None:
    content = {"a": None, "b": {"c": False, "d": 0, "e": []}, "f": ""}
    assert dict(flatten(content)) == {"b.d": 0}


def test_a_data_set_file_that_is_missing_is_named(folder: Path) -> None:
    (folder / "multidatabackend.json").unlink()
    with pytest.raises(UserError, match=r"multidatabackend\.json does not exist"):
        imported(folder / "simpletuner.json")
