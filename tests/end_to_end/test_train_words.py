"""New words are learned from files and folders, saved as others write them, and read in prompts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from tests import tiny
from tests.runs import Runs, differing, others_slow, refusal

SHORT = """
--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 2 --seed 5
--learning_rate 1e-2 --save_model_as safetensors --cache_latents --token_string zxqk
"""
SD, SDXL = "train_textual_inversion", "sdxl_train_textual_inversion"
TWO = ("--num_vectors_per_token", "2", "--init_word", "cat")
IMAGE = shlex.split("--width 64 --height 64 --steps 3 --seed 5 --dtype fp32 --sampler ddim --cfg_scale 5")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for path in tiny.pictures(folder / "1_zxqk", 2, (64, 64)):
        path.with_suffix(".txt").write_text("a photo of zxqk, red", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tiny.TinyCheckpoint]:
    place = tmp_path_factory.mktemp("models")
    return {SD: tiny.sd(place / "sd", as_folder=True), SDXL: tiny.sdxl(place / "xl", as_folder=True)}


@pytest.fixture(scope="module")
def runs(
    models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Runs]:
    return {
        name: Runs(
            name,
            [*model.arguments, "--train_data_dir", str(images)],
            shlex.split(SHORT),
            tmp_path_factory.mktemp(name),
        )
        for name, model in models.items()
    }


@pytest.mark.parametrize("name", others_slow([SD, SDXL], [SDXL]))
def test_a_resumed_word_is_that_of_an_uninterrupted_run(name: str, runs: dict[str, Runs]) -> None:
    run = runs[name]
    whole = run.plain(*TWO, "--max_train_steps", "3")
    assert {key: tuple(value.shape) for key, value in whole.items()} == (
        {"emb_params": (2, 64)} if name == SD else {"clip_l": (2, 64), "clip_g": (2, 128)}
    )
    assert {value.dtype for value in whole.values()} == {torch.float32}
    run("first", *TWO, "--save_state")
    state = str(run.outs / "first" / "model-state")
    assert differing(whole, run("second", *TWO, "--max_train_steps", "3", "--resume", state)) == []
    with safe_open(run.outs / "first" / "model.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["modelspec.architecture"].endswith("/textual-inversion")
    assert not [key for key in metadata if key.startswith("ss_")]


def test_a_word_goes_on_from_a_file_and_is_saved_in_any_format(runs: dict[str, Runs], images: Path) -> None:
    run = runs[SD]
    learned = run.plain(*TWO)["emb_params"]
    forms: dict[str, Any] = {
        "a1111.pt": {"string_to_token": {"*": 265}, "string_to_param": {"*": learned}, "name": "zxqk"},
        "diffusers.bin": {"<zxqk>": learned},
    }
    nothing = ("--learning_rate", "1e-30", "--max_train_steps", "1", "--num_vectors_per_token", "2")
    for name, content in forms.items():
        torch.save(content, run.outs / name)
        again = run(f"from {name}", *nothing, "--weights", str(run.outs / name))
        assert torch.equal(again["emb_params"], learned)
    halves = ("--save_model_as", "pt", "--save_precision", "fp16", "--use_style_template")
    arguments = run.arguments("pt", *TWO, *halves)
    del arguments[(place := arguments.index("--output_name")) : place + 2]
    assert script(SD, arguments) == 0
    saved = torch.load(run.outs / "pt" / "zxqk.pt", weights_only=True)
    assert (saved["emb_params"].dtype, saved["emb_params"].shape) == (torch.float16, learned.shape)


@pytest.mark.parametrize("name", others_slow([SD, SDXL], [SD]))
@pytest.mark.filterwarnings("ignore")  # of diffusers
def test_diffusers_makes_the_image_that_we_make(
    name: str, runs: dict[str, Runs], models: dict[str, tiny.TinyCheckpoint], tmp_path: Path
) -> None:
    from diffusers import DDIMScheduler, DiffusionPipeline

    runs[name].plain(*TWO)
    file, model = tmp_path / "zxqk.safetensors", models[name]
    file.write_bytes((runs[name].outs / "plain0" / "model.safetensors").read_bytes())
    where = ["--embeddings", str(file), "--prompt", "a zxqk cat", "--negative_prompt", "red"]
    family = "sd" if name == SD else "sdxl"
    assert main(["generate", family, *model.arguments, *IMAGE, *where, "--output_dir", str(tmp_path)]) == 0
    pipeline: Any = DiffusionPipeline.from_pretrained(model.path)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, steps_offset=1, clip_sample=False, set_alpha_to_one=True
    )
    if name == SD:
        pipeline.load_textual_inversion(str(file), token="zxqk")
    else:
        vectors = load_file(file)
        for key, number in {"clip_l": "", "clip_g": "_2"}.items():
            encoder, tokenizer = (getattr(pipeline, f"{it}{number}") for it in ("text_encoder", "tokenizer"))
            told = {"token": "zxqk", "text_encoder": encoder, "tokenizer": tokenizer}
            pipeline.load_textual_inversion(vectors[key], **told)
    theirs = pipeline(
        "a zxqk cat",
        negative_prompt="red",
        width=64,
        height=64,
        num_inference_steps=3,
        guidance_scale=5.0,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images[0]
    with Image.open(next(tmp_path.glob("*.png"))) as image:
        ours = np.asarray(image) / 255
    assert theirs.std() > 0.02
    assert np.abs(ours - theirs).max() < 0.51 / 255 + 1e-3


BAD = {
    ("--token_string", "ca"): "'ca' is in the vocabulary already; choose another word",
    ("--token_string", ""): "--token_string is missing",
    ("--num_vectors_per_token", "0"): "num_vectors_per_token is 0",
    ("--num_vectors_per_token", "3", "--weights", "{two}"): "has 2 vectors and --num_vectors_per_token is 3",
    ("--weights", "{nowhere}"): "does not exist",
    ("--weights", "{wide}"): "vectors of 5 numbers; text_encoder of this model takes 64",
    ("--weights", "{lora}"): "an embedding for this model holds emb_params",
    ("--weights", "{nan}"): "holds values that are no numbers",
    ("--init_word", "cat dog", "--strict"): "is 2 tokens for 1 vectors: the others are left out",
    ("--init_word", " ", "--strict"): "which is no word",
    ("--token_string", "zxqk2", "--strict"): "no caption holds 'zxqk2'",
    ("--learning_rte", "1"): "did you mean --learning_rate",
}


@pytest.mark.parametrize("options", BAD, ids=" ".join)
def test_what_cannot_work_is_one_line(
    options: tuple[str, ...],
    runs: dict[str, Runs],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    files = {name: tmp_path / f"{name}.safetensors" for name in ("two", "nowhere", "wide", "lora", "nan")}
    save_file({"emb_params": torch.zeros(2, 64)}, files["two"])
    save_file({"emb_params": torch.zeros(1, 5)}, files["wide"])
    save_file({"lora_down.weight": torch.zeros(1, 5), "x": torch.zeros(1)}, files["lora"])
    save_file({"emb_params": torch.full((1, 64), torch.nan)}, files["nan"])
    given = [option.format(**files) for option in options]
    assert BAD[options] in runs[SD].refusal(capfd, *given)


def test_captions_cannot_be_encoded_once_while_their_words_change(
    runs: dict[str, Runs], capfd: pytest.CaptureFixture[str]
) -> None:
    assert "every text encoder is trained" in runs[SDXL].refusal(capfd, "--cache_text_encoder_outputs")


def test_a_file_for_another_model_is_refused_in_generation(
    models: dict[str, tiny.TinyCheckpoint], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zxqk.safetensors"
    save_file({"emb_params": torch.zeros(2, 64)}, file)
    arguments = ["generate", "sdxl", *models[SDXL].arguments, "--embeddings", str(file)]
    assert main([*arguments, "--output_dir", str(tmp_path)]) == 2
    assert "an embedding for this model holds clip_l and clip_g" in refusal(capfd)
