"""Whole runs with Stable Diffusion 3 on a tiny model in the published format."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from sfumato.cli.main import script
from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.interface.family import DENOISER
from sfumato.models.interface.publishing import Layout, Publishing
from sfumato.sampling import session
from tests import tiny
from tests.runs import Runs, differing

SHORT = shlex.split(
    "--resolution 64 --caption_extension .txt --network_module networks.lora_sd3 --network_dim 2 --seed 1 "
    "--learning_rate 1e-2 --max_train_steps 2 --max_data_loader_n_workers 0 --t5xxl_max_token_length 16"
)
CACHED = ("--cache_latents_to_disk", "--cache_text_encoder_outputs_to_disk", "--network_train_unet_only")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinySd3:
    return tiny.sd3(tmp_path_factory.mktemp("model"), hidden=64)


@pytest.fixture(scope="module")
def runs(model: tiny.TinySd3, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    data = tmp_path_factory.mktemp("data")
    tiny.pictures(data / "1_cat", 2)
    places = [*model.arguments, "--train_data_dir", str(data)]
    return Runs("sd3_train_network", places, SHORT, tmp_path_factory.mktemp("outs"))


def test_both_clips_are_trained_beside_a_cache_of_t5(runs: Runs) -> None:
    weights = runs("both", "--cache_text_encoder_outputs", "--weighting_scheme", "logit_normal")
    owners = {name.split("_")[1] for name in weights}
    assert owners == {"unet", "te1", "te2"}
    ups = [tensor for name, tensor in weights.items() if "lora_up" in name]
    assert sum(bool(up.any()) for up in ups) > 0.8 * len(ups)  # the last text layers are not listened to
    with safe_open(runs.outs / "both" / "model.safetensors", "pt") as file:
        told = file.metadata()
    assert told["ss_weighting_scheme"] == "logit_normal"
    assert told["ss_base_model_version"] == "sd3_medium"
    assert told["modelspec.architecture"] == "stable-diffusion-3-medium/lora"
    assert told["ss_apply_lg_attn_mask"] == "False"


def test_caches_hold_what_sd_scripts_expects_and_train_alike(
    runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    first = runs("first", *CACHED)
    data = next(Path(runs.arguments("")[runs.arguments("").index("--train_data_dir") + 1]).iterdir())
    with np.load(data / "picture_00_sd3_te.npz") as held:
        shapes = {name: array.shape for name, array in held.items() if name != "sfumato_record"}
    assert shapes == {
        "lg_out": (77, 192), "lg_pooled": (192,), "t5_out": (16, 256), "t5_attn_mask": (16,),
        "clip_l_attn_mask": (77,), "clip_g_attn_mask": (77,),
        "apply_lg_attn_mask": (), "apply_t5_attn_mask": (),
    }  # fmt: skip
    with np.load(data / "picture_00_0064x0064_sd3.npz") as held:
        assert held["latents_8x8"].shape == (16, 8, 8)
    capfd.readouterr()
    assert differing(first, runs("again", *CACHED)) == []
    assert "loading clip_l" not in capfd.readouterr().err
    for path in data.glob("*.npz"):  # as sd-scripts writes them
        with np.load(path) as held:
            plain = {name: array for name, array in held.items() if name != "sfumato_record"}
        np.savez(path, **plain)
    assert differing(first, runs("adopted", *CACHED)) == []
    log = capfd.readouterr().err
    assert not [part for part in ("clip_l", "clip_g", "t5xxl", "vae") if f"loading {part}" in log]
    with pytest.raises(AssertionError):  # hidden padding changes what is kept
        assert differing(first, runs("masked", *CACHED, "--apply_lg_attn_mask", "--apply_t5_attn_mask")) == []
    assert "loading clip_l" in capfd.readouterr().err


def test_previews_leave_the_weights_alone(runs: Runs, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cat --w 64 --h 64 --s 2 --d 3 --l 2 --n a blue dog\n")
    shown = ("--sample_prompts", str(prompts), "--sample_every_n_steps", "1")
    assert differing(runs.plain(*CACHED), runs("shown", *CACHED, *shown)) == []
    assert len(list((runs.outs / "shown" / "sample").glob("*.png"))) == 2


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(runs: Runs) -> None:
    options = (*CACHED, "--clip_g_dropout_rate", "0.5", "--pos_emb_random_crop_rate", "0.5")
    whole = runs("whole", *options, "--max_train_steps", "4")
    runs("half", *options, "--save_state")
    state = runs.outs / "half" / "model-state"
    assert differing(whole, runs("rest", *options, "--max_train_steps", "4", "--resume", str(state))) == []


def test_the_older_schedule_and_dropped_captions_train_otherwise(runs: Runs) -> None:
    plain = runs.plain(*CACHED)
    assert differing(plain, runs("2024", *CACHED, "--sd3_schedule", "2024"))
    assert differing(plain, runs("dropped", *CACHED, "--clip_g_dropout_rate", "1"))
    assert differing(plain, runs("scaled", *CACHED, "--enable_scaled_pos_embed"))


def test_a_missing_text_encoder_is_named_before_anything_is_loaded(
    runs: Runs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    bare = tiny.sd3(tmp_path, hidden=64, in_one=False, has_t5=False)
    line = runs.refusal(capfd, "--pretrained_model_name_or_path", str(bare.path))
    assert line == "error: --clip_l is not given; it must name a CLIP-L text encoder"
    named = [f"--{part}={path}" for part, path in bare.encoders.items()]
    options = ["--pretrained_model_name_or_path", str(bare.path), *named]
    line = runs.refusal(capfd, *options, "--network_args", "train_t5xxl=True")
    assert "ask for text encoder 3, but the files given hold 2 (clip_l, clip_g)" in line


def test_images_follow_loras_live_and_merged(
    runs: Runs, model: tiny.TinySd3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "default_device", lambda: torch.device("cpu"))
    runs.plain(*CACHED)
    lora = next(runs.outs.glob("plain*/model.safetensors"))

    def image(name: str, *options: str) -> np.ndarray:
        given = "--prompt cat --negative_prompt dog --width 48 --height 64 --steps 2 --t5xxl_token_length 16"
        folder = ["--output_dir", str(tmp_path / name)]
        assert (
            script("sd3_minimal_inference", [*model.generation_arguments, *given.split(), *folder, *options])
            == 0
        )
        (path,) = (tmp_path / name).glob("*.png")
        with Image.open(path) as found:
            return np.asarray(found).astype(int)

    plain, live = image("plain"), image("live", "--lora_weights", f"{lora};30")
    merged = image("merged", "--lora_weights", f"{lora};30", "--merge_lora_weights", "--offload")
    assert plain.shape == (64, 48, 3)
    assert np.abs(live - plain).max() > 2
    assert np.abs(live - merged).max() <= 1
    assert np.abs(image("bf16", "--bf16") - plain).max() > 0
    assert np.abs(image("without", "--do_not_use_t5xxl") - plain).max() > 1


def test_a_transformer_in_diffusers_layout_trains_as_the_single_file(
    runs: Runs, model: tiny.TinySd3, tmp_path: Path
) -> None:
    whole = Publishing(Layout.FOLDER)
    Sd3Family({DENOISER: model.path}).write({}, tmp_path / "folder", whole)
    others = [f"--{part}={model.path}" for part in ("clip_l", "clip_g", "t5xxl", "vae")]
    options = ["--pretrained_model_name_or_path", str(tmp_path / "folder"), *others]
    plain, trained = runs.plain(*CACHED), runs("folder", *CACHED, *options)
    for name, tensor in plain.items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-5)
