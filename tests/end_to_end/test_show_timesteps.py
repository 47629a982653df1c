"""`--show_timesteps` answers and stops: nothing is loaded, nothing is trained."""

from pathlib import Path

import pytest
from PIL import Image

from sfumato.cli.main import main


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_timesteps_are_shown_without_any_model(
    family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", family, "lora", "--pretrained_model_name_or_path", "none.safetensors"]
    argv += ["--output_dir", str(tmp_path / "out"), "--output_name", "a", "--max_train_steps", "1"]
    assert main([*argv, "--show_timesteps", "console", "--show_timesteps_resolution", "512,768"]) == 0
    assert "100,000 timesteps drawn as for images of 512x768" in capfd.readouterr().out
    assert main([*argv, "--show_timesteps", "image"]) == 0
    (written,) = (tmp_path / "out").iterdir()
    with Image.open(written) as shown:
        assert min(shown.size) > 500
    assert main([*argv, "--show_timesteps", "image", "--show_timesteps_resolution", "big"]) == 2
    assert "--show_timesteps_resolution is 'big'" in capfd.readouterr().err
