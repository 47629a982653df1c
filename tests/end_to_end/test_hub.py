"""A run whose models come from the Hub and whose results go there, and one that goes on from there."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load, load_file

from sfumato.cli.main import main, script
from tests import tiny
from tests.hub.conftest import empty_hub as empty_hub
from tests.hub.conftest import served as served
from tests.hub.stand_in import TOKEN, WRONG, Hub, Repo
from tests.runs import refusal

# The client speaks to its HTTP library in a way that is out of date there.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

SHORT = """
--resolution 64 --caption_extension .caption --max_data_loader_n_workers 0 --max_train_epochs 2 --seed 5
--network_module networks.lora_flux --network_dim 2 --network_train_unet_only --cache_latents
--cache_text_encoder_outputs --output_name lora --save_every_n_epochs 1
"""
UPLOADS = "--huggingface_repo_id me/lora --save_state --save_state_to_huggingface --async_upload --model_card"


@pytest.fixture
def hub(empty_hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return empty_hub


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"), hidden=32, heads=1, depth=1, depth_single=1)


@pytest.fixture
def arguments(hub: Hub, model: tiny.TinyFlux, tmp_path: Path) -> list[str]:
    """Put a model on the Hub; return the options of a run on it."""
    files = {"flux1.safetensors": model.transformer, "ae.safetensors": model.ae}
    files |= {"clip/clip_l.safetensors": model.clip_l, "t5/t5xxl.safetensors": model.t5xxl}
    hub.repos["lab/flux"] = Repo({name: path.read_bytes() for name, path in files.items()})
    tiny.pictures(tmp_path / "data" / "1_sks cat", 2)
    names = {"pretrained_model_name_or_path": "lab/flux/flux1.safetensors", "ae": "lab/flux/ae.safetensors"}
    names |= {"clip_l": "lab/flux/clip", "t5xxl": "lab/flux/t5/t5xxl.safetensors"}
    names |= {"tokenizer_cache_dir": str(model.tokenizers), "train_data_dir": str(tmp_path / "data")}
    places = [text for name, value in names.items() for text in (f"--{name}", value)]
    return [*places, *SHORT.split()]


def train(arguments: list[str], out: Path, *options: str) -> int:
    return script("flux_train_network", [*arguments, "--output_dir", str(out), *options])


def test_a_run_fetches_its_models_uploads_all_and_is_gone_on_with_from_there(
    hub: Hub, arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a sks cat --w 64 --h 64 --s 1 --d 1\n")
    previews = ["--sample_prompts", str(prompts), "--sample_every_n_epochs", "2"]
    out = tmp_path / "out"
    assert train(arguments, out, *UPLOADS.split(), *previews) == 0
    assert sum("ae.safetensors" in line for line in hub.asked("GET /lab/flux/resolve")) == 2  # header and all
    files = hub.repos["me/lora"].files
    assert hub.repos["me/lora"].is_private
    [image] = (out / "sample").iterdir()
    assert {name for name in files if "/" not in name} == {
        *("lora-000001.safetensors", "lora.safetensors", "README.md"),
    }
    assert {name.partition("/")[0] for name in files if "/" in name} == {
        *("lora-000001-state", "lora-state", "sample"),
    }
    assert files["lora.safetensors"] == (out / "lora.safetensors").read_bytes()
    card = files["README.md"].decode()
    assert 'base_model: "lab/flux"' in card
    assert f"![a sks cat](sample/{image.name})" in card
    assert "Trigger words: `sks cat`" in card
    assert TOKEN not in card + (out / "lora.config.toml").read_text() + (out / "lora.run.json").read_text()

    files["lora-000001-state-2/state.json"] = b"not this one"
    hub.failures["commit/main"] = [403]
    capfd.readouterr()
    resume = ["--resume", "me/lora/lora-000001-state", "--resume_from_huggingface"]
    assert train(arguments, tmp_path / "again", *resume, "--huggingface_repo_id", "me/lora") == 0
    said = capfd.readouterr().err
    assert "1 of 1 upload failed: lora.safetensors; upload them with: hf up" in said
    assert "other options: --huggingface" not in said
    first, again = (load_file(folder / "lora.safetensors") for folder in (out, tmp_path / "again"))
    assert all((first[name] == again[name]).all() for name in first)


def test_a_wrong_token_stops_a_run_before_it_fetches_anything(
    hub: Hub, arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(arguments, tmp_path / "out", *UPLOADS.split(), "--huggingface_token", WRONG) == 2
    line = refusal(capfd)
    assert "--huggingface_repo_id is me/lora: the access token is not valid; make one at" in line
    assert WRONG not in line
    assert hub.log == ["GET /api/whoami-v2"]


def test_another_kind_of_model_is_refused_before_it_is_fetched(
    hub: Hub, arguments: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments[1] = "lab/flux/ae.safetensors"
    assert train(arguments, tmp_path / "out") == 2
    assert "it seems to be an autoencoder; give a FLUX.1 transformer" in refusal(capfd)
    assert [line.rpartition(" ")[2] for line in hub.asked("GET /lab/flux/resolve")] == ["bytes=0-100000"]


def test_a_tool_takes_names_too(hub: Hub, arguments: list[str], tmp_path: Path) -> None:
    target = tmp_path / "out.safetensors"
    assert main(["convert", "lab/flux/flux1.safetensors", str(target)]) == 0
    assert load_file(target).keys() == load(hub.repos["lab/flux"].files["flux1.safetensors"]).keys()
