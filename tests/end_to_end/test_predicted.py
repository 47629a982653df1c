"""What a base predicts is what its files say, in training, sampling and whatever is written of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.checkpoints.header import read_header
from sfumato.cli.main import script
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.config.run.training.loss import LossConfig
from sfumato.config.run.training.noise import NoiseConfig
from sfumato.diffusion import schedules
from sfumato.errors import UserError
from sfumato.models.components.stable_diffusion.predicted import Told, predicted_by, told_by, told_by_file
from sfumato.models.interface.family import DENOISER, VAE, Prediction, ends_in_pure_noise
from sfumato.models.registry.families import family_for
from sfumato.training.trainables.denoising import objective_of
from tests import tiny

NOTHING = torch.empty(0)
MARKS = {"v_pred": NOTHING, "ztsnr": NOTHING}
FOREIGN = {**MARKS, "made_up": torch.tensor([0.1, 1e-9], dtype=torch.float64)}
EPSILON, VELOCITY = Prediction.EPSILON, Prediction.VELOCITY


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyCheckpoint:
    return tiny.sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def marked(plain: tiny.TinyCheckpoint) -> Path:
    return written(plain.path, plain.path.with_name("marked.safetensors"), FOREIGN)


def written(
    source: Path, target: Path, more: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> Path:
    save_file({**load_file(source), **more}, target, metadata)
    return target


def config(path: Path, **options: Any) -> ModelConfig:
    return ModelConfig(pretrained_model_name_or_path=str(path), **options)


@pytest.mark.parametrize(
    ("names", "metadata", "told"),
    [
        ([], {}, Told()),
        (["v_pred"], {}, Told(VELOCITY, by="v_pred")),
        (
            ["v_pred", "ztsnr"],
            {"modelspec.prediction_type": "epsilon"},
            Told(VELOCITY, True, "v_pred, ztsnr"),
        ),
        (["ztsnr"], {}, Told(None, True, "ztsnr")),
        ([], {"modelspec.prediction_type": "v"}, Told(VELOCITY, by="modelspec.prediction_type v")),
        ([], {"modelspec.prediction_type": "epsilon"}, Told(EPSILON, by="modelspec.prediction_type epsilon")),
        (["edm_mean", "edm_std"], {}, Told(by="edm_mean, edm_std", is_strange=True)),
        (
            [],
            {"modelspec.prediction_type": "flow"},
            Told(by="modelspec.prediction_type flow", is_strange=True),
        ),
    ],
)
def test_a_file_says_what_it_predicts_by_marks_or_metadata(
    names: list[str], metadata: dict[str, str], told: Told
) -> None:
    assert told_by_file(["model.diffusion_model.out.0.weight", *names], metadata) == told


@pytest.mark.parametrize(
    ("settings", "kind", "zero_terminal", "is_strange"),
    [
        ({"prediction_type": "epsilon"}, EPSILON, False, False),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}, VELOCITY, True, False),
        ({"prediction_type": "sample"}, None, False, True),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "prediction_type": "epsilon"}, None, False, True),
        ({}, None, False, False),
    ],
)
def test_a_folder_says_it_by_its_scheduler(
    settings: dict[str, Any], kind: Prediction | None, zero_terminal: bool, is_strange: bool, tmp_path: Path
) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(settings))
    told = told_by(tmp_path)
    assert (told.kind, told.zero_terminal, told.is_strange) == (kind, zero_terminal, is_strange)


def test_the_file_counts_before_options_unless_the_user_insists(
    marked: Path, plain: tiny.TinyCheckpoint
) -> None:
    followed = predicted_by(config(marked), marked)
    assert (followed.kind, followed.zero_terminal) == (VELOCITY, True)
    assert followed.remark == (
        "marked.safetensors says (v_pred, ztsnr) that it predicts velocity, from a noise schedule that ends "
        "in pure noise"
    )
    insisted = predicted_by(config(marked, prediction_type="epsilon"), marked)
    assert (insisted.kind, insisted.zero_terminal) == (EPSILON, False)
    assert "but --prediction_type epsilon counts" in insisted.remark
    assert predicted_by(config(plain.path), plain.path).kind is EPSILON
    assert predicted_by(config(plain.path, v_parameterization=True), plain.path).kind is VELOCITY


def test_options_that_contradict_the_file_are_an_error_before_weights_are_loaded(
    plain: tiny.TinyCheckpoint, tmp_path: Path
) -> None:
    says = {"modelspec.prediction_type": "epsilon"}
    noise = written(plain.path, tmp_path / "noise.safetensors", {}, says)
    family = family_for(Run("s", "sdxl", [config(noise, v_parameterization=True)]))
    family.check([VAE])
    with pytest.raises(
        UserError, match=r"--v_parameterization is given, but noise.safetensors says .*noise; leave it"
    ):
        family.check([DENOISER])
    both = config(noise, v_parameterization=True, prediction_type="v_prediction")
    family_for(Run("s", "sdxl", [both])).check([DENOISER])
    edm = written(plain.path, tmp_path / "edm.safetensors", {"edm_mean": NOTHING, "edm_std": NOTHING})
    strange = family_for(Run("s", "sdxl", [config(edm)]))
    assert strange.identity.prediction_type is None
    with pytest.raises(
        UserError, match=r"edm.safetensors says \(edm_mean, edm_std\) .* neither .* insist with"
    ):
        strange.check([DENOISER])
    family_for(Run("s", "sdxl", [config(edm, prediction_type="epsilon")])).check([DENOISER])


def test_the_step_of_a_marked_base_compares_with_velocity(marked: Path) -> None:
    run = Run("s", "sdxl", [config(marked), LossConfig(), NoiseConfig()])
    family = family_for(run)
    assert ends_in_pure_noise(family)
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    seen: list[Tensor] = []

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        seen.extend((noisy, timesteps))
        return torch.zeros_like(noisy)

    loss = objective_of(run, family)(predict, latents, torch.Generator().manual_seed(7)).per_sample
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(7))
    kept = torch.cumprod(1 - schedules.ddpm_betas(), 0)[seen[1].long()].reshape(-1, 1, 1, 1)
    torch.testing.assert_close(seen[0], kept.sqrt() * latents + (1 - kept).sqrt() * noise)
    by_hand = (kept.sqrt() * noise - (1 - kept).sqrt() * latents).square().mean((1, 2, 3))
    torch.testing.assert_close(loss, by_hand)


def test_a_marked_base_trains_as_options_would_have_it_and_the_lora_says_so(
    plain: tiny.TinyCheckpoint, marked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny.pictures(tmp_path / "data" / "1_cat", 1)
    options = (
        f"--train_data_dir {tmp_path / 'data'} --output_dir {tmp_path} --resolution 64 --network_dim 1 "
        "--network_module networks.lora --max_data_loader_n_workers 0 --caption_extension .txt --seed 1 "
        "--learning_rate 1e-2 --max_train_steps 2 --network_train_unet_only --min_snr_gamma 5 "
        f"--optimizer_type SGD --scale_v_pred_loss_like_noise_pred --tokenizer_cache_dir {plain.tokenizers}"
    ).split()
    for name, path, own in (
        ("followed", marked, []),
        ("asked", plain.path, ["--v_parameterization", "--zero_terminal_snr"]),
    ):
        argv = ["--pretrained_model_name_or_path", str(path), "--output_name", name, *options, *own]
        assert script("sdxl_train_network", argv) == 0
    assert "marked.safetensors says (v_pred, ztsnr) that it predicts velocity" in capfd.readouterr().err
    followed, asked = (load_file(tmp_path / f"{name}.safetensors") for name in ("followed", "asked"))
    ups = [name for name in asked if name.endswith("lora_up.weight")]
    changes = [torch.cat([run[name].flatten() for name in ups]) for run in (followed, asked)]
    assert (changes[0] - changes[1]).norm() < 1e-3 * changes[1].norm()
    metadata = read_header(tmp_path / "followed.safetensors").metadata
    assert metadata["modelspec.prediction_type"] == "v"
    assert metadata["ss_zero_terminal_snr"] == "True"
    refused = ["--pretrained_model_name_or_path", str(plain.path), "--output_name", "no", *options]
    assert script("sdxl_train_network", refused) == 2
    assert (
        "--scale_v_pred_loss_like_noise_pred needs a model that predicts velocity" in capfd.readouterr().err
    )


def test_layouts_keep_what_is_said_of_the_prediction(
    plain: tiny.TinyCheckpoint, marked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    convert = "tools/convert_diffusers20_original_sd"
    folder, back = tmp_path / "folder", tmp_path / "back.safetensors"
    assert script(convert, ["--use_safetensors", str(marked), str(folder)]) == 0
    assert "1 tensor left out, which a folder has no place for: made_up" in capfd.readouterr().err
    settings = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert settings["prediction_type"] == "v_prediction"
    assert settings["rescale_betas_zero_snr"] is True
    assert told_by(folder).kind is VELOCITY
    assert script(convert, [str(folder), str(back)]) == 0
    found = {name: value.shape for name, value in load_file(back).items() if name in MARKS}
    assert found == dict.fromkeys(MARKS, (0,))
    assert script(convert, ["--use_safetensors", str(plain.path), str(tmp_path / "silent")]) == 0
    assert script(convert, [str(tmp_path / "silent"), str(back)]) == 0
    assert not load_file(back).keys() & MARKS.keys()


def test_a_scheduler_that_is_copied_is_put_right_where_the_model_contradicts_it(
    marked: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    reference = tmp_path / "reference"
    (reference / "scheduler").mkdir(parents=True)
    (reference / "model_index.json").write_text('{"scheduler": ["diffusers", "DDIMScheduler"]}')
    (reference / "scheduler" / "scheduler_config.json").write_text(
        '{"_class_name": "DDIMScheduler", "prediction_type": "epsilon", "clip_sample": false}'
    )
    options = ["--use_safetensors", "--reference_model", str(reference)]
    script("tools/convert_diffusers20_original_sd", [*options, str(marked), str(tmp_path / "out")])
    settings = json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text())
    assert (settings["prediction_type"], settings["clip_sample"]) == ("v_prediction", False)
    assert (
        "the scheduler to copy says scheduler_config.json: prediction_type epsilon" in capfd.readouterr().err
    )


@pytest.mark.filterwarnings("ignore")  # of diffusers
def test_the_public_loader_opens_a_marked_file(
    plain: tiny.TinyCheckpoint, marked: Path, tmp_path: Path
) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    folder = tmp_path / "folder"
    script("tools/convert_diffusers20_original_sd", ["--use_safetensors", str(plain.path), str(folder)])
    opened: Any = UNet2DConditionModel.from_single_file(str(marked), config=str(folder), subfolder="unet")
    wanted = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(value, wanted[name]) for name, value in opened.state_dict().items())
