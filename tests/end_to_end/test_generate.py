"""Whole runs of image making on a tiny model in the published file formats."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from sfumato.cli.main import script
from sfumato.sampling import session
from sfumato.sampling.output.image_files import read_request
from tests import tiny

COMMON = ["--width", "32", "--height", "48", "--steps", "2", "--seed", "7", "--prompt", "a red cat"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def _everything_runs_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "default_device", lambda: torch.device("cpu"))


def draw(model: tiny.TinyFlux, folder: Path, *options: str, dtype: str = "fp32") -> np.ndarray:
    """Run the script as a person would and return its one image."""
    before = set(folder.glob("*.png"))
    arguments = [*model.generation_arguments, *COMMON, "--output_dir", str(folder), "--dtype", dtype]
    assert script("flux_minimal_inference", [*arguments, *options]) == 0
    (path,) = set(folder.glob("*.png")) - before
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def lora(path: Path, keys: Sequence[str], seed: int = 0, strength: float = 0.3) -> Path:
    """Write a rank-2 LoRA of the tiny model's layers: names as in published adapter files."""
    shapes = {
        "lora_unet_double_blocks_0_img_attn_qkv": (64, 192),
        "lora_unet_single_blocks_1_linear1": (64, 448),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (64, 256),
    }
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for key in keys or shapes:
        inputs, outputs = shapes[key]
        tensors[f"{key}.lora_down.weight"] = torch.randn(2, inputs, generator=rng) * strength
        tensors[f"{key}.lora_up.weight"] = torch.randn(outputs, 2, generator=rng) * strength
        tensors[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(tensors, path)
    return path


def test_an_image_can_be_made_again_from_its_own_parameters(model: tiny.TinyFlux, tmp_path: Path) -> None:
    first = draw(model, tmp_path, "--guidance", "2.5")
    assert first.shape == (48, 32, 3)
    assert first.std() > 1
    (path,) = tmp_path.glob("*.png")
    request = read_request(path)
    assert (request.guidance, request.steps, request.seed) == (2.5, 2, 7)
    options = {
        "prompt": request.prompt,
        "width": request.width,
        "height": request.height,
        "steps": request.steps,
        "seed": request.seed,
        "guidance": request.guidance,
        "cfg_scale": request.cfg_scale,
    }
    again = draw(
        model, tmp_path, *(str(text) for name, value in options.items() for text in (f"--{name}", value))
    )
    assert np.array_equal(first, again)


@pytest.mark.parametrize(
    "options",
    [
        ("--prompt", "a blue dog"),
        ("--seed", "8"),
        ("--guidance", "30"),
        ("--cfg_scale", "4"),
        ("--apply_t5_attn_mask",),
    ],
    ids=lambda options: options[0],
)
def test_every_option_changes_the_image(
    model: tiny.TinyFlux, tmp_path: Path, plain: np.ndarray, options: tuple[str, ...]
) -> None:
    assert np.abs(draw(model, tmp_path, *options) - plain).max() > 0


@pytest.fixture(scope="module")
def plain(model: tiny.TinyFlux, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "default_device", lambda: torch.device("cpu"))
        return draw(model, tmp_path_factory.mktemp("plain"))


def test_a_negative_prompt_with_cfg_scale_changes_the_image(model: tiny.TinyFlux, tmp_path: Path) -> None:
    empty = draw(model, tmp_path, "--cfg_scale", "4")
    told = draw(model, tmp_path, "--cfg_scale", "4", "--negative_prompt", "blue sky")
    assert np.abs(empty - told).max() > 0


def test_offload_draws_the_same(model: tiny.TinyFlux, tmp_path: Path, plain: np.ndarray) -> None:
    assert np.array_equal(draw(model, tmp_path, "--offload"), plain)


def test_lora_strength_zero_equals_no_lora(model: tiny.TinyFlux, tmp_path: Path, plain: np.ndarray) -> None:
    path = lora(tmp_path / "a.safetensors", [])
    assert np.array_equal(draw(model, tmp_path, "--lora", f"{path};0"), plain)
    assert np.abs(draw(model, tmp_path, "--lora", f"{path};1") - plain).max() > 2


def test_merged_loras_equal_live_ones(model: tiny.TinyFlux, tmp_path: Path, plain: np.ndarray) -> None:
    files = [
        "--lora",
        f"{lora(tmp_path / 'a.safetensors', [])};0.8",
        f"{lora(tmp_path / 'b.safetensors', [], 1)}",
    ]
    live = draw(model, tmp_path, *files)
    merged = draw(model, tmp_path, *files, "--merge_lora_weights")
    assert np.abs(live - plain).max() > 4
    assert np.abs(live - merged).max() <= 1


def test_a_lora_of_the_text_encoder_alone_acts(
    model: tiny.TinyFlux, tmp_path: Path, plain: np.ndarray
) -> None:
    path = lora(tmp_path / "a.safetensors", ["lora_te1_text_model_encoder_layers_0_mlp_fc1"], strength=1.0)
    assert np.abs(draw(model, tmp_path, "--lora", str(path)) - plain).max() > 0


@pytest.mark.parametrize(
    "options",
    [("--dtype", "bf16"), ("--dtype", "bf16", "--flux_dtype", "fp8"), ("--dtype", "fp8", "--offload")],
    ids=lambda options: "+".join(options[1::2]),
)
def test_smaller_number_formats_stay_close(
    model: tiny.TinyFlux, tmp_path: Path, plain: np.ndarray, options: tuple[str, ...]
) -> None:
    path = lora(tmp_path / "a.safetensors", [], strength=0.1)
    exact = draw(model, tmp_path, "--lora", str(path))
    made = draw(model, tmp_path, *options, "--lora", str(path))
    assert 0 < np.abs(made - exact).mean() < 0.1 * exact.std()


def test_a_model_stored_in_8_bits_loads(model: tiny.TinyFlux, tmp_path: Path, plain: np.ndarray) -> None:
    small = tiny.flux(tmp_path / "small", dtype=torch.float8_e4m3fn)
    made = draw(small, tmp_path, "--flux_dtype", "fp8", dtype="bf16")
    assert 0 < np.abs(made - plain).mean() < 0.1 * plain.std()


def test_a_model_without_guidance_takes_four_steps(tmp_path: Path) -> None:
    fast = tiny.flux(tmp_path / "model", schnell=True)
    arguments = [*fast.generation_arguments, *COMMON, "--output_dir", str(tmp_path), "--dtype", "fp32"]
    del arguments[arguments.index("--steps") : arguments.index("--steps") + 2]
    assert script("flux_minimal_inference", arguments) == 0
    (path,) = tmp_path.glob("*.png")
    assert read_request(path).steps == 4


def test_the_command_and_the_script_draw_the_same(
    model: tiny.TinyFlux, tmp_path: Path, plain: np.ndarray
) -> None:
    from sfumato.cli.main import main

    arguments = [*model.generation_arguments, *COMMON, "--output_dir", str(tmp_path), "--dtype", "fp32"]
    assert main(["generate", *arguments]) == 0
    (path,) = tmp_path.glob("*.png")
    with Image.open(path) as image:
        assert np.array_equal(np.asarray(image), plain)


def test_the_command_that_people_know_runs_as_it_stands(model: tiny.TinyFlux, tmp_path: Path) -> None:
    adapter = lora(tmp_path / "lora-flux-name.safetensors", [])
    command = (
        f"--ckpt {model.transformer} --clip_l {model.clip_l} --t5xxl {model.t5xxl} --ae {model.ae} "
        f"--dtype bf16 --out {tmp_path / 'out'} --seed 1 --flux_dtype fp8 --offload --lora {adapter};1.0 "
        "--width 64 --height 64 --steps 2"
    )
    prompt = "a cat holding a sign that says hello world"
    assert script("flux_minimal_inference", [*command.split(), "--prompt", prompt]) == 0
    (path,) = (tmp_path / "out").glob("*.png")
    request = read_request(path)
    assert (request.prompt, request.seed, request.guidance) == (prompt, 1, 3.5)


def _broken(kind: str, model: tiny.TinyFlux, folder: Path) -> tuple[list[str], str]:
    """Return options that cannot work, and what the message must name."""
    half = folder / "half.safetensors"
    half.write_bytes(model.transformer.read_bytes()[:-1000])
    (folder / "file").write_text("in the way")
    table = {
        "missing model": (["--ckpt_path", "none.safetensors"], "none.safetensors"),
        "truncated model": (["--ckpt_path", str(half)], "half.safetensors"),
        "swapped files": (["--ae", str(model.clip_l)], "clip_l.safetensors"),
        "missing lora": (["--lora", "none.safetensors;1"], "none.safetensors"),
        "strength that is none": (["--lora", f"{model.ae};strong"], "strong"),
        "model as lora": (["--lora", str(model.ae)], "ae.safetensors"),
        "dtype": (["--dtype", "bf8"], "bf8"),
        "half precision on a CPU": (["--dtype", "fp16"], "fp16"),
        "folder": (["--output_dir", str(folder / "file" / "new")], "--output_dir"),
        "size": (["--width", "0"], "width"),
        "steps": (["--steps", "0"], "steps"),
        "unknown option": (["--promt", "x"], "promt"),
    }
    return table[kind]


@pytest.mark.parametrize(
    "kind",
    [
        "missing model",
        "truncated model",
        "swapped files",
        "missing lora",
        "strength that is none",
        "model as lora",
        "dtype",
        "half precision on a CPU",
        "folder",
        "size",
        "steps",
        "unknown option",
    ],
)
def test_what_cannot_work_is_one_line_and_status_2(
    model: tiny.TinyFlux, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    options, named = _broken(kind, model, tmp_path)
    arguments = [*model.generation_arguments, *COMMON, "--output_dir", str(tmp_path), *options]
    assert script("flux_minimal_inference", arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert named in errors[0]
    assert not list(tmp_path.glob("*.png"))
