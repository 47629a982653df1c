"""What a run trains, loads and merges first: the text encoders' parts, rates, start files, dtypes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sfumato.cli.main import script
from sfumato.models.interface.parts import Parts
from tests import runs, tiny
from tests.runs import differing, figures, others_slow

DENOISER, CLIP_L, T5 = "lora_unet", "lora_te1", "lora_te3"
COUNTS = {DENOISER: 26, CLIP_L: 12, T5: 14}
"""Adapted layers of the tiny model's parts."""


SHORT = """
--resolution 32 --caption_extension .txt --max_data_loader_n_workers 0 --max_train_steps 2 --seed 5
--learning_rate 1e-2 --network_module networks.lora_flux --network_dim 2
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    tiny.pictures(folder / "1_sks cat", 2, (32, 32))
    return folder


def arguments(model: tiny.TinyFlux, images: Path, out: Path, *options: str) -> list[str]:
    places = ["--train_data_dir", str(images), "--output_dir", str(out), "--output_name", "lora"]
    return [*model.arguments, *places, *SHORT.split(), *options]


def run(*options: str) -> None:
    assert script("flux_train_network", options) == 0


def refusal(capfd: pytest.CaptureFixture[str], *options: str) -> str:
    """Run what must be refused; return the one line that says why."""
    assert script("flux_train_network", options) == 2
    return runs.refusal(capfd)


def saved(out: Path) -> dict[str, Tensor]:
    return load_file(out / "lora.safetensors")


def steps(out: Path) -> list[dict[str, float]]:
    return figures(out / "lora.metrics.jsonl")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the parts that runs load, in order."""
    names: list[str] = []
    original = Parts.__getitem__

    def watched(self: Parts, part: str) -> torch.nn.Module:
        if part not in self:
            names.append(part)
        return original(self, part)

    monkeypatch.setattr(Parts, "__getitem__", watched)
    return names


TEXT_ONLY = "--network_train_text_encoder_only"
WITH_T5 = ("--network_args", "train_t5xxl=True")
ROWS = {
    "FLUX": (("--network_train_unet_only",), (DENOISER,), ("clip_l", "t5xxl")),
    "FLUX + CLIP-L": ((), (DENOISER, CLIP_L), ("t5xxl",)),
    "FLUX + CLIP-L + T5": (WITH_T5, (DENOISER, CLIP_L, T5), ()),
    "CLIP-L": ((TEXT_ONLY,), (CLIP_L,), ("t5xxl",)),
    "CLIP-L + T5": ((TEXT_ONLY, *WITH_T5), (CLIP_L, T5), ()),
}
"""Options, what is trained, and which text encoders can be cached."""


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--text_encoder_lr", "1e-4", "1e-5"), "--text_encoder_lr has no effect beyond its first 1"),
        (
            (*WITH_T5, "--text_encoder_lr", "1", "1", "1"),
            "--text_encoder_lr has no effect beyond its first 2",
        ),
        (("--network_train_unet_only", "--text_encoder_lr", "1e-4"), "no text encoder is trained"),
        ((TEXT_ONLY, "--unet_lr", "1e-4"), f"--unet_lr has no effect with {TEXT_ONLY}"),
    ],
)
def test_a_rate_of_what_is_not_trained_is_refused_when_strict(
    options: tuple[str, ...],
    complaint: str,
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert complaint in refusal(capfd, *arguments(model, images, tmp_path, *options, "--strict"))


@pytest.mark.parametrize("row", others_slow(ROWS, ["FLUX", "FLUX + CLIP-L", "CLIP-L + T5"]))
def test_what_is_asked_for_is_trained_and_what_is_cached_is_not_loaded_again(
    row: str,
    model: tiny.TinyFlux,
    tmp_path: Path,
    loaded: list[str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    options, trained, cached = ROWS[row]
    tiny.pictures(tmp_path / "data" / "1_sks cat", 2, (32, 32))
    here = (model, tmp_path / "data")
    if not cached:
        caching = "--cache_text_encoder_outputs"
        line = refusal(capfd, *arguments(*here, tmp_path / "refused", *options, caching))
        assert "--cache_text_encoder_outputs: every text encoder is trained" in line
    to_disk = ["--cache_latents_to_disk", *(["--cache_text_encoder_outputs_to_disk"] if cached else [])]
    run(*arguments(*here, tmp_path / "first", *options, *to_disk))
    assert sorted(loaded) == ["clip_l", "denoiser", "t5xxl", "vae"]

    loaded.clear()
    run(*arguments(*here, tmp_path / "again", *options, *to_disk))
    assert set(loaded) == {"denoiser", "clip_l", "t5xxl"} - set(cached)
    assert len(loaded) == len(set(loaded))
    weights = saved(tmp_path / "first")
    assert differing(weights, saved(tmp_path / "again")) == []
    layers = {name.partition(".")[0] for name in weights}
    found = {part: sum(layer.startswith(f"{part}_") for layer in layers) for part in COUNTS}
    assert found == {part: COUNTS[part] if part in trained else 0 for part in COUNTS}
    ups = {name: bool(tensor.any()) for name, tensor in weights.items() if "lora_up" in name}
    assert all(ups.values())  # they start at zero: every layer has learned


def test_each_text_encoder_has_its_rate_and_a_rate_of_zero_leaves_it_out(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    rates = ["--unet_lr", "1e-3", "--text_encoder_lr", "1e-4"]
    run(*arguments(model, images, tmp_path / "one", *WITH_T5, *rates))
    run(*arguments(model, images, tmp_path / "two", *WITH_T5, *rates, "1e-5"))
    run(*arguments(model, images, tmp_path / "none", *WITH_T5, *rates, "0"))
    first, second, left_out = "lr/textencoder 1 ", "lr/textencoder 2 ", "none"
    found = {out: steps(tmp_path / out)[-1] for out in ("one", "two", left_out)}
    assert (found["one"][first], found["one"][second], found["one"]["lr/unet"]) == (1e-4, 1e-4, 1e-3)
    assert (found["two"][first], found["two"][second]) == (1e-4, 1e-5)
    assert second not in found[left_out]
    weights = saved(tmp_path / left_out)
    moved = {name[:8] for name, tensor in weights.items() if "lora_up" in name and tensor.any()}
    assert moved == {CLIP_L, "lora_une"}


def test_a_run_goes_on_from_a_file_at_the_file_s_rank_or_says_what_differs(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    here = (model, images)
    run(*arguments(*here, tmp_path / "start", "--network_dim", "3", "--network_alpha", "2", *WITH_T5))
    file = str(tmp_path / "start" / "lora.safetensors")
    still = ["--learning_rate", "1e-30", "--network_weights", file, *WITH_T5]
    run(*arguments(*here, tmp_path / "same", *still, "--network_dim", "3"))
    run(*arguments(*here, tmp_path / "ranks", *still, "--dim_from_weights"))
    start = saved(tmp_path / "start")
    for name, tensor in saved(tmp_path / "ranks").items():
        torch.testing.assert_close(tensor.float(), start[name].float(), msg=name)
    assert differing(saved(tmp_path / "same"), saved(tmp_path / "ranks")) == []
    capfd.readouterr()
    assert "this model and rank need 2x64; use the file's rank" in refusal(
        capfd, *arguments(*here, tmp_path / "other", *still)
    )
    still[still.index(file)] = str(tmp_path / "nowhere.safetensors")
    assert "nowhere.safetensors" in refusal(capfd, *arguments(*here, tmp_path / "other", *still))


def base_file(path: Path, start: Path) -> str:
    """Write an adapter with a visible effect, shaped like a trained one."""
    rng = torch.Generator().manual_seed(1)
    tensors = {
        name: 0.3 * torch.randn(tensor.shape, generator=rng) if "alpha" not in name else tensor
        for name, tensor in saved(start).items()
    }
    save_file(tensors, path)
    return str(path)


def test_base_adapters_are_part_of_the_model_that_is_trained(
    model: tiny.TinyFlux, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "data"
    tiny.pictures(images / "1_sks cat", 2, (32, 32))
    here = (model, images)
    cached = ["--cache_latents_to_disk", "--network_train_unet_only", "--cache_text_encoder_outputs_to_disk"]
    run(*arguments(*here, tmp_path / "shape"))
    run(*arguments(*here, tmp_path / "plain", *cached))
    base = ["--base_weights", base_file(tmp_path / "base.safetensors", tmp_path / "shape")]
    capfd.readouterr()
    run(*arguments(*here, tmp_path / "merged", *cached, *base))
    # The text encoder is another one now, so what the first run cached is made again, and kept apart.
    assert "loading clip_l" in capfd.readouterr().err
    run(*arguments(*here, tmp_path / "again", *cached, *base))
    assert "loading clip_l" not in capfd.readouterr().err
    assert differing(saved(tmp_path / "merged"), saved(tmp_path / "again")) == []
    run(*arguments(*here, tmp_path / "half", *cached, *base, "--base_weights_multiplier", "0.5"))
    run(*arguments(*here, tmp_path / "zero", *cached, *base, "--base_weights_multiplier", "0"))
    losses = {out: steps(tmp_path / out)[0]["loss"] for out in ("plain", "merged", "half", "zero")}
    assert losses["zero"] == losses["plain"]
    assert len({round(loss, 4) for loss in losses.values()}) == 3
    # Where 8 bits are too coarse to merge into, the adapter acts beside them: nearly the same loss.
    eight = ["--mixed_precision", "bf16", "--fp8_base_unet"]
    for out, extra in {"fp8 merged": base, "fp8 plain": []}.items():
        run(*arguments(*here, tmp_path / out, *cached, *eight, *extra))
        wide = losses[out.removeprefix("fp8 ")]
        other = losses["plain" if extra else "merged"]
        loss = steps(tmp_path / out)[0]["loss"]
        assert abs(loss - wide) < 0.2 * abs(loss - other)


def test_a_base_adapter_that_cannot_be_merged_is_refused_before_anything_is_loaded(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "other.safetensors"
    tensors = {"lora_down.weight": torch.ones(2, 8), "lora_up.weight": torch.ones(8, 2)}
    save_file({f"lora_unet_elsewhere.{name}": tensor for name, tensor in tensors.items()}, file)
    for options, message in {
        ("--base_weights", str(tmp_path / "nowhere.safetensors")): "there is no such file",
        ("--base_weights", str(file)): "fits no layer of this model: it holds lora_unet_elsewhere ...",
        ("--base_weights", str(file), "--base_weights_multiplier", "1", "2"): "has 2 values for 1",
        ("--base_weights", str(model.ae)): "it seems to be an autoencoder; give a LoRA",
    }.items():
        assert message in refusal(capfd, *arguments(model, images, tmp_path / "out", *options))


def test_norms_stay_within_their_limit_and_are_recorded(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    run(*arguments(model, images, tmp_path / "free"))
    run(*arguments(model, images, tmp_path / "bound", "--scale_weight_norms", "0.02"))
    norms = {}
    for out in ("free", "bound"):
        weights = saved(tmp_path / out)
        layers = {name.partition(".")[0] for name in weights}
        norms[out] = [
            (weights[f"{layer}.lora_up.weight"] @ weights[f"{layer}.lora_down.weight"]).norm().item() / 2
            for layer in layers
        ]
    assert max(norms["free"]) > 0.03
    assert max(norms["bound"]) == pytest.approx(0.02, rel=1e-4)
    last = steps(tmp_path / "bound")[-1]
    assert last["max_norm/max_key_norm"] == pytest.approx(max(norms["bound"]), rel=1e-4)
    assert last["max_norm/average_key_norm"] == pytest.approx(
        sum(norms["bound"]) / len(norms["bound"]), rel=1e-4
    )
    assert 0 < last["max_norm/keys_scaled"] <= len(norms["bound"])
    assert not any(name.startswith("max_norm") for name in steps(tmp_path / "free")[-1])


def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.dtype]:
    """Return what formats the Linear layers of the next run's parts are stored in, as they are loaded."""
    found: dict[str, torch.dtype] = {}
    original = Parts.__getitem__

    def watched(self: Parts, part: str) -> torch.nn.Module:
        module = original(self, part)
        layers = [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear)]
        found[part] = layers[len(layers) // 2].weight.dtype
        return module

    monkeypatch.setattr(Parts, "__getitem__", watched)
    return found


EIGHT, SIXTEEN = torch.float8_e4m3fn, torch.bfloat16


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--fp8_base",), {"denoiser": EIGHT, "clip_l": EIGHT, "t5xxl": EIGHT}),
        (("--fp8_base_unet",), {"denoiser": EIGHT, "clip_l": SIXTEEN, "t5xxl": SIXTEEN}),
        (
            ("--fp8_base", "--cache_text_encoder_outputs"),
            {"denoiser": EIGHT, "clip_l": EIGHT, "t5xxl": SIXTEEN},
        ),
        ((), {"denoiser": SIXTEEN, "clip_l": SIXTEEN, "t5xxl": SIXTEEN}),
    ],
)
def test_frozen_weights_are_stored_as_asked_and_all_of_it_trains(
    options: tuple[str, ...],
    expected: dict[str, torch.dtype],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = tiny.flux(tmp_path / "eight", dtype=EIGHT, text_dtype=EIGHT)
    found = stored(monkeypatch)
    t5 = () if "--cache_text_encoder_outputs" in options else WITH_T5
    shared = ("--mixed_precision", "bf16", "--gradient_checkpointing")
    run(*arguments(files, images, tmp_path / "out", *shared, *options, *t5))
    del found["vae"]
    assert found == expected
    weights = saved(tmp_path / "out")
    assert all(tensor.any() for name, tensor in weights.items() if "lora_up" in name)
    assert {weights[name].dtype for name in weights if "alpha" not in name} == {torch.float32}


def test_full_bf16_keeps_what_is_trained_in_16_bits(
    model: tiny.TinyFlux, images: Path, tmp_path: Path
) -> None:
    run(*arguments(model, images, tmp_path, "--mixed_precision", "bf16", "--full_bf16", "--save_state"))
    weights = saved(tmp_path)
    assert {weights[name].dtype for name in weights if "alpha" not in name} == {SIXTEEN}
    assert all(tensor.any() for name, tensor in weights.items() if "lora_up" in name)


def test_number_formats_that_a_cpu_has_not_are_refused(
    model: tiny.TinyFlux, images: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for options, message in {
        (
            "--mixed_precision",
            "fp16",
            "--full_fp16",
        ): "fp16, which a CPU cannot train in; use bf16",
        ("--full_fp16",): "--full_fp16 needs --mixed_precision fp16",
        ("--fp8_base_unet",): "--fp8_base_unet needs --mixed_precision bf16",
    }.items():
        assert message in refusal(capfd, *arguments(model, images, tmp_path, *options))


def test_memory_options_say_what_they_do_here(
    model: tiny.TinyFlux,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    run(*arguments(model, images, tmp_path, "--lowram", "--highvram"))
    shown = capfd.readouterr().err
    assert "--lowram has no effect here: models are always loaded straight onto the device" in shown
    assert "--highvram" not in "".join(line for line in shown.splitlines() if "no effect" in line)
    handed_back = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: handed_back.append(True))
    for keeps_memory, expected in ((True, []), (False, [True])):
        parts = Parts(None, torch.device("cuda"), keeps_memory=keeps_memory)  # type: ignore[arg-type]
        parts.release("vae")
        assert handed_back == expected
