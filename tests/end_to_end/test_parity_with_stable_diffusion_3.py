"""Stable Diffusion 3 against the public pipeline: whole images, and a LoRA of ours in it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sfumato.adapters.files.programs.told import PROGRAMS
from sfumato.adapters.files.sizes import shapes_of
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.adapters.sd_scripts import network_modules
from sfumato.checkpoints.lazy import LazyTensor
from sfumato.cli.main import main, script
from sfumato.config.run.model.network import NetworkConfig
from sfumato.config.run.run import Run
from sfumato.models.families.sd3.family import Sd3Family
from sfumato.models.families.sd3.keys import to_diffusers
from sfumato.models.families.sd3.transformer import folder_settings
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.parts import Parts
from sfumato.sampling.pipeline import Pipeline
from sfumato.sampling.request import Request
from tests import tiny
from tests.runs import others_slow
from tests.start_images import as_public, encode_without_chance, started

REQUEST = Request("a red cat", "a blue dog", 48, 64, 3, 11, cfg_scale=3.0)
T5_LENGTH = 24


def ours(folder: Path, **options: Any) -> Pipeline:
    files = tiny.sd3(folder, **options)
    family = Sd3Family({DENOISER: files.path}, files.tokenizers, t5_max_length=T5_LENGTH)
    return Pipeline(family, Parts(family, torch.device("cpu")), dtype=torch.float32)


def public(pipeline: Pipeline, what: str = "") -> Any:
    """Return diffusers' pipeline of the same weights and tokenizers; `what`: "Img2Img" or "Inpaint"."""
    import diffusers
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    own, parts, texts = pipeline.parts[DENOISER], pipeline.parts, pipeline.family.text_outputs
    settings = {key: value for key, value in folder_settings(own.shape).items() if key[0] != "_"}  # type: ignore[arg-type]
    transformer = SD3Transformer2DModel(**settings)
    lazily = to_diffusers({name: LazyTensor.of(tensor) for name, tensor in own.state_dict().items()})
    transformer.load_state_dict({name: tensor.load() for name, tensor in lazily.items()})
    vae: Any = parts[VAE]
    vae.register_to_config(scaling_factor=1.5305, shift_factor=0.0609)
    encoders = {}
    for place, part in enumerate(("clip_l", "clip_g", "t5xxl")):
        end = f"_{place + 1}" if place else ""
        encoders[f"text_encoder{end}"] = parts[part] if part in texts else None
        tokenizers = pipeline.family.tokenizers
        encoders[f"tokenizer{end}"] = tokenizers[part].vocabulary if part in texts else None
    kind: Any = getattr(diffusers, f"StableDiffusion3{what}Pipeline")
    made = kind(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae, **encoders
    )
    made.set_progress_bar_config(disable=True)
    return made


def image_of(pipeline: Any, t5_length: int = T5_LENGTH) -> np.ndarray:
    """Return the image that diffusers' pipeline makes of the request, in [0, 1]."""
    noise = torch.randn(1, 16, 8, 6, generator=torch.Generator().manual_seed(REQUEST.seed))
    with torch.inference_mode():
        return pipeline(
            REQUEST.prompt,
            negative_prompt=REQUEST.negative_prompt,
            guidance_scale=REQUEST.cfg_scale,
            num_inference_steps=REQUEST.steps,
            width=REQUEST.width,
            height=REQUEST.height,
            latents=noise,
            max_sequence_length=t5_length,
            output_type="np",
        ).images[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("form", "has_t5"), [("medium", True), ("5-medium", False)])
def test_images_equal_those_of_the_public_pipeline(tmp_path: Path, form: str, has_t5: bool) -> None:
    pipeline = ours(tmp_path, form=form, has_t5=has_t5)
    theirs = public(pipeline)
    made = image_of(theirs, T5_LENGTH if has_t5 else 77)  # as many zeros as CLIP has tokens
    assert (made * 255).std() > 10
    assert np.abs(np.asarray(pipeline(REQUEST)) - made * 255).max() < 1
    if form == "medium":
        theirs.save_pretrained(tmp_path / "folder")
        family = Sd3Family({DENOISER: tmp_path / "folder"}, t5_max_length=T5_LENGTH)
        family.check((DENOISER, VAE, *family.text_outputs))
        again = Pipeline(family, Parts(family, torch.device("cpu")), dtype=torch.float32)
        assert np.abs(np.asarray(again(REQUEST)) - made * 255).max() < 1


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("is_folder", others_slow([True, False], [True]))
def test_a_trained_model_makes_the_same_image_in_the_public_pipeline(is_folder: bool, tmp_path: Path) -> None:
    """A folder that was saved is loaded as it is, a single file by diffusers' own conversion."""
    files = tiny.sd3(tmp_path / "base", in_one=False)
    tiny.pictures(tmp_path / "data" / "1_cat", 1)
    text = "--resolution 64 --caption_extension .txt --seed 1 --learning_rate 1e-3 --max_train_steps 1 "
    text += "--max_data_loader_n_workers 0 --train_text_encoder --train_t5xxl --save_clip --save_t5xxl "
    text += "--output_name model --save_model_as " + ("diffusers" if is_folder else "safetensors")
    places = ["--train_data_dir", str(tmp_path / "data"), "--output_dir", str(tmp_path / "out")]
    assert script("sd3_train", [*files.arguments, *places, *text.split()]) == 0
    saved = tmp_path / "out" / ("model" if is_folder else "model.safetensors")
    given = dict.fromkeys(("clip_l", "clip_g", "t5xxl"), saved) | {DENOISER: saved, VAE: files.path}
    family = Sd3Family(given, files.tokenizers, t5_max_length=T5_LENGTH)
    pipeline = Pipeline(family, Parts(family, torch.device("cpu")), dtype=torch.float32)
    theirs = public(pipeline)
    _replace_parts(theirs, saved)
    assert np.abs(np.asarray(pipeline(REQUEST)) - image_of(theirs) * 255).max() < 1
    plain = Sd3Family({DENOISER: files.path, **files.encoders}, files.tokenizers, t5_max_length=T5_LENGTH)
    untrained = Pipeline(plain, Parts(plain, torch.device("cpu")), dtype=torch.float32)
    assert np.abs(np.asarray(pipeline(REQUEST)).astype(int) - np.asarray(untrained(REQUEST))).max() > 1


def _replace_parts(pipeline: Any, saved: Path) -> None:
    """Put what diffusers and transformers read of a saved model into a pipeline."""
    from diffusers import SD3Transformer2DModel
    from diffusers.loaders import single_file_utils

    if saved.is_dir():
        pipeline.transformer = SD3Transformer2DModel.from_pretrained(saved, subfolder="transformer")
        for name in ("text_encoder", "text_encoder_2", "text_encoder_3"):
            setattr(pipeline, name, type(getattr(pipeline, name)).from_pretrained(saved, subfolder=name))
        return
    weights = load_file(saved)
    own = single_file_utils.convert_sd3_transformer_checkpoint_to_diffusers(dict(weights))
    pipeline.transformer.load_state_dict(own)
    for name, part in {
        "text_encoder": "clip_l",
        "text_encoder_2": "clip_g",
        "text_encoder_3": "t5xxl",
    }.items():
        prefix = f"text_encoders.{part}.transformer."
        found = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        encoder = getattr(pipeline, name)
        bare = {key.removeprefix("text_model."): value for key, value in found.items()}
        is_bare = not any(key.startswith("text_model.") for key in encoder.state_dict())
        encoder.load_state_dict(bare if is_bare else found)


def test_latents_that_start_from_images_equal_those_of_the_public_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents, since that pipeline for masks leaves a number out when it decodes them."""
    encode_without_chance(monkeypatch)
    pipeline = ours(tmp_path, form="5-medium", has_t5=False)
    for what in ("Img2Img", "Inpaint"):
        request = started(replace(REQUEST, steps=5), tmp_path, has_mask=what == "Inpaint")
        theirs = public(pipeline, what)
        expected = theirs(
            request.prompt,
            negative_prompt=request.negative_prompt,
            guidance_scale=request.cfg_scale,
            num_inference_steps=request.steps,
            generator=torch.Generator().manual_seed(request.seed),
            max_sequence_length=77,
            output_type="latent",
            **as_public(request, theirs),
        ).images
        (found,) = pipeline.stages([request])
        assert expected.std() > 0.1
        assert float((found - expected).abs().max()) < 1e-3


@pytest.mark.filterwarnings("ignore")
def test_a_converted_lora_changes_the_public_pipeline_as_ours(tmp_path: Path) -> None:
    pipeline = ours(tmp_path, form="5-medium", depth=3, has_t5=False)
    models = {part: pipeline.parts[part] for part in (*pipeline.family.text_outputs, DENOISER)}
    config = NetworkConfig(network_module="networks.lora_sd3", network_dim=4, network_alpha=2)
    network = network_modules.resolve(Run("sd3_train_network", "sd3", [config])).build(
        pipeline.family, models
    )
    assert isinstance(network, AdapterNetwork)
    rng = torch.Generator().manual_seed(2)
    for name, parameter in network.named_parameters():
        if "lora_up" in name:
            parameter.data.normal_(0.0, 0.1, generator=rng)
    file, converted = tmp_path / "lora.safetensors", tmp_path / "converted.safetensors"
    network.save(file, None, {})
    assert (
        main(["convert-lora", "--for", "diffusers", "--src_path", str(file), "--dst_path", str(converted)])
        == 0
    )
    tensors = load_file(converted)
    assert PROGRAMS["diffusers"](shapes_of(tensors)).loaded == tensors.keys()  # type: ignore[union-attr]

    x, context, y, time = (
        torch.randn(1, *size, generator=rng) for size in ((16, 6, 4), (9, 256), (192,), ())
    )
    other, words = public(pipeline), torch.randint(0, 200, (1, 77), generator=rng)
    theirs = other.transformer
    with torch.no_grad():
        plain = models[DENOISER](x, time, context, y)
        other.load_lora_weights(str(tmp_path), weight_name=converted.name)
        changed_theirs = theirs(x, context, y, time, return_dict=False)[0]
        theirs_g = other.text_encoder_2(words).text_embeds
        other.unload_lora_weights()
        network.attach()
        changed = models[DENOISER](x, time, context, y)
        own_g = models["clip_g"](words).text_embeds
    assert relative(changed, plain) > 0.02
    assert relative(changed - plain, changed_theirs - plain) < 1e-3
    assert relative(own_g, theirs_g) < 1e-4


def test_a_file_of_ours_is_said_to_do_nothing_in_diffusers_and_all_in_comfyui() -> None:
    name = "lora_unet_joint_blocks_0_x_block_attn_qkv"
    keys = {f"{name}.lora_down.weight": (4, 64), f"{name}.lora_up.weight": (192, 4), f"{name}.alpha": ()}
    te = {key.replace(name, "lora_te1_text_model_encoder_layers_0_mlp_fc1"): s for key, s in keys.items()}
    loaded = {
        program: len(judge(keys | te).loaded) for program, judge in PROGRAMS.items() if judge(keys | te)
    }
    assert loaded == {"ComfyUI": 6, "diffusers": 0, "sd-scripts": 6, "InvokeAI": 0}


def test_a_lora_of_diffusers_comes_back_as_it_was(tmp_path: Path) -> None:
    """Its inputs tell Stable Diffusion 3 from FLUX.1, whose layers have the same names there."""
    rng = torch.Generator().manual_seed(0)
    file, there, back = (tmp_path / f"{name}.safetensors" for name in ("ours", "theirs", "back"))
    tensors = {}
    for layer, rows in (("x_block_attn_qkv", 3 * 1536), ("context_block_mlp_fc1", 6144)):
        name = f"lora_unet_joint_blocks_1_{layer}"
        tensors[f"{name}.lora_down.weight"] = torch.randn(2, 1536, generator=rng)
        tensors[f"{name}.lora_up.weight"] = torch.randn(rows, 2, generator=rng)
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    save_file(tensors, file)
    for program, source, target in (("diffusers", file, there), ("sd-scripts", there, back)):
        assert (
            main(["convert-lora", "--for", program, "--src_path", str(source), "--dst_path", str(target)])
            == 0
        )
    assert "transformer.transformer_blocks.1.attn.to_q.lora_A.weight" in load_file(there)
    again = load_file(back)
    for layer in {key.partition(".")[0] for key in tensors}:
        up, down = (f"{layer}.lora_{half}.weight" for half in ("up", "down"))
        scale = float(again[f"{layer}.alpha"]) / again[down].shape[0]
        torch.testing.assert_close(scale * again[up] @ again[down], tensors[up] @ tensors[down])


def test_a_loha_becomes_a_lora_that_diffusers_loads_which_loads_no_loha(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng = torch.Generator().manual_seed(0)
    name = "lora_unet_joint_blocks_0_x_block_mlp_fc1"
    file, lora, there = (tmp_path / f"{kind}.safetensors" for kind in ("loha", "lora", "theirs"))
    sizes = {"w1_a": (256, 2), "w1_b": (2, 64), "w2_a": (256, 2), "w2_b": (2, 64)}
    tensors = {f"{name}.hada_{key}": torch.randn(*size, generator=rng) for key, size in sizes.items()}
    save_file({**tensors, f"{name}.alpha": torch.tensor(1.0)}, file)
    refused = ["--for", "diffusers", "--src_path", str(file), "--dst_path", str(there)]
    assert main(["convert-lora", *refused]) == 2
    assert "diffusers loads nothing of this kind of adapter" in capfd.readouterr().err
    merged = ["--models", str(file), "--ratios", "1", "--new_rank", "4", "--save_to", str(lora)]
    assert main(["merge-svd", *merged]) == 0
    convert("diffusers", lora, there)
    found = load_file(there)
    assert PROGRAMS["diffusers"](shapes_of(found)).loaded == found.keys()  # type: ignore[union-attr]
    (down,), (up,) = ([value for key, value in found.items() if half in key] for half in ("lora_A", "lora_B"))
    scale = next((float(v) / len(down) for key, v in found.items() if key.endswith("alpha")), 1.0)
    first, second = (tensors[f"{name}.hada_w{i}_a"] @ tensors[f"{name}.hada_w{i}_b"] for i in (1, 2))
    assert relative(scale * up @ down, first * second / 2) < 1e-3


def convert(program: str, source: Path, target: Path) -> None:
    """Write a file in the form that a program loads."""
    options = ["--for", program, "--src_path", str(source), "--dst_path", str(target)]
    assert main(["convert-lora", *options]) == 0


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()
