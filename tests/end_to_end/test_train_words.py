"""New words are learned from files and folders, saved as others write them, and read in prompts."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfumato.cli.main import main, script
from sfumato.models.families.sd.family import SdFamily
from tests import tiny
from tests.runs import Runs, differing, others_slow, refusal

SHORT = """
--resolution 64 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 2 --seed 5
--learning_rate 1e-2 --save_model_as safetensors --cache_latents --token_string zxqk
"""
XTI = "train_textual_inversion_XTI"
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
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

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


def test_a_word_of_each_layer_is_learned_and_read(
    models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    model = models[SD].arguments
    given = [*model, "--train_data_dir", str(images), *shlex.split(SHORT), *TWO, "--gradient_checkpointing"]
    run = [*given, "--output_dir", str(tmp_path), "--output_name"]
    assert script(XTI, [*run, "zxqk"]) == 0
    saved = load_file(tmp_path / "zxqk.safetensors")
    assert [*saved] == sorted(SdFamily.text_layers)
    assert {tuple(vectors.shape) for vectors in saved.values()} == {(2, 64)}
    assert len({float(vectors.sum()) for vectors in saved.values()}) == len(saved)
    nothing = ["--learning_rate", "1e-30", "--weights", str(tmp_path / "zxqk.safetensors")]
    assert script(XTI, [*run, "again", *nothing]) == 0
    assert differing(saved, load_file(tmp_path / "again.safetensors")) == []
    alike, own = tmp_path / "same" / "zxqk.safetensors", tmp_path / "zxqk.safetensors"
    (tmp_path / "same").mkdir()
    (tmp_path / "plain").mkdir()
    save_file({layer: saved["MID"].clone() for layer in SdFamily.text_layers}, alike)
    save_file({"emb_params": saved["MID"].clone()}, plain := tmp_path / "plain" / "zxqk.safetensors")
    shown = [
        shown_by("sd", model, tmp_path / f"images{number}", ["--embeddings", str(file)])
        for number, file in enumerate((own, alike, plain))
    ]
    assert np.abs(shown[1] - shown[2]).max() <= 1
    assert np.abs(shown[0] - shown[2]).max() > 1


FLOWS = {"flux": ["clip_l"], "sd3": ["clip_g", "clip_l"]}


@pytest.mark.parametrize("family", others_slow(FLOWS, ["flux"]))
def test_clip_learns_a_word_beside_a_t5_that_is_cached(family: str, images: Path, tmp_path: Path) -> None:
    model = tiny.flux(tmp_path / "m", hidden=32, heads=1) if family == "flux" else tiny.sd3(tmp_path / "m")
    given = [
        *model.arguments,
        "--train_data_dir",
        str(images),
        *shlex.split(SHORT),
        *TWO,
        "--output_name",
        "zxqk",
    ]
    text = ["--cache_text_encoder_outputs", "--t5xxl_max_token_length", "64", "--output_dir", str(tmp_path)]
    assert main(["train", family, "embedding", *given, *text]) == 0
    saved = load_file(tmp_path / "zxqk.safetensors")
    assert sorted(saved) == FLOWS[family]
    assert all(not torch.equal(vectors[0], vectors[1]) for vectors in saved.values())


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_with_twice_the_accumulation(
    runs: dict[str, Runs], images: Path
) -> None:
    run, drop_in = runs[SD], Path(__file__).parents[2] / "sd-scripts" / f"{SD}.py"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    subprocess.run([*launcher, str(drop_in), *run.arguments("two", *TWO)], check=True)
    one = run("one", *TWO, "--gradient_accumulation_steps", "2")
    two = load_file(run.outs / "two" / "model.safetensors")
    torch.testing.assert_close(two, one, rtol=0, atol=1e-6)


def test_a_lora_and_a_word_are_learned_together(
    models: dict[str, tiny.TinyCheckpoint], images: Path, tmp_path: Path
) -> None:
    model, rate = models[SD].arguments, ("--train_words_lr", "1e-3")
    short = shlex.split(SHORT.replace("--token_string", "--train_words"))
    own = "--network_module networks.lora --network_dim 2 --network_train_unet_only --train_words_vectors 2"
    options = [*short, *own.split(), "--train_words_init", "cat", *rate]
    run = Runs("train_network", [*model, "--train_data_dir", str(images)], options, tmp_path)
    three, saved = ("--max_train_steps", "3"), ("--save_every_n_steps", "1", "--save_last_n_steps", "1")
    whole, place = run("whole", *three, *saved), Path("model-words", "zxqk.safetensors")
    folders = sorted(folder.name for folder in (tmp_path / "whole").glob("*-words"))
    assert folders == ["model-step00000002-words", "model-step00000003-words", "model-words"]
    word = load_file(tmp_path / "whole" / place)
    assert word["emb_params"].shape == (2, 64)
    assert not torch.equal(*word["emb_params"])
    run("first", "--save_state")
    assert differing(whole, run("second", *three, "--resume", str(tmp_path / "first" / "model-state"))) == []
    assert differing(word, load_file(tmp_path / "second" / place)) == []
    bundled = run("bundled", *three, "--bundle_words")
    assert torch.equal(bundled.pop("bundle_emb.zxqk.string_to_param.*"), word["emb_params"])
    assert differing(bundled, whole) == []
    lora = {
        name: ["--lora_weights", str(tmp_path / name / "model.safetensors")] for name in ("bundled", "whole")
    }
    shown = [
        shown_by("sd", model, tmp_path / "one", lora["bundled"]),
        shown_by(
            "sd", model, tmp_path / "two", [*lora["whole"], "--embeddings", str(tmp_path / "whole" / place)]
        ),
    ]
    first, second = shown
    assert np.array_equal(first, second)


def shown_by(family: str, model: list[str], out: Path, options: list[str]) -> np.ndarray:
    """Return the image of a prompt with the word."""
    where = ["--prompt", "a zxqk cat", "--output_dir", str(out)]
    assert main(["generate", family, *model, *IMAGE, *where, *options]) == 0
    with Image.open(next(out.glob("*.png"))) as image:
        return np.asarray(image).astype(int)


BAD = {
    ("--token_string", "ca"): "'ca' is in the vocabulary already; choose another word",
    ("--token_string", ""): "--token_string is missing",
    ("--num_vectors_per_token", "0"): "num_vectors_per_token is 0",
    ("--num_vectors_per_token", "3", "--weights", "{two}"): "has 2 vectors and --num_vectors_per_token is 3",
    ("--weights", "{nowhere}"): "does not exist",
    ("--weights", "{wide}"): "vectors of 5 numbers; text_encoder of this model takes 64",
    ("--weights", "{lora}"): "an embedding for this model holds emb_params",
    ("--weights", "{nan}"): "holds values that are no numbers",
    ("--init_word", "cat dog", "--strict"): "is 2 tokens for 1 vector: the others have no effect",
    ("--init_word", " ", "--strict"): "which is no word",
    ("--init_word", "a zxqk"): "which holds the new word itself; give words that the model knows",
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
