"""The FLUX family on tiny models in the real file formats."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from sfumato.cli.scripts import script_named
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.families.flux.family import FluxFamily
from sfumato.models.families.flux.options import FluxGenerationOptions, FluxOptions
from sfumato.models.families.flux.packing import image_ids, pack, unpack
from sfumato.models.interface.conditioning import Conditioning
from sfumato.models.interface.family import Family
from sfumato.models.interface.parts import Parts
from sfumato.models.interface.publishing import Publishing, tensors_of
from sfumato.models.registry.families import family_for
from sfumato.nn import checkpointing
from tests import tiny
from tests.pipelines import flux_weights

CPU = torch.device("cpu")
PARTS = ("denoiser", "clip_l", "t5xxl", "vae")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tiny.TinyFlux:
    return tiny.flux(tmp_path_factory.mktemp("flux"), dtype=torch.float32, text_dtype=torch.float32)


def family_of(files: tiny.TinyFlux, **settings: object) -> FluxFamily:
    paths = {"transformer": files.transformer, "clip_l": files.clip_l, "t5xxl": files.t5xxl, "ae": files.ae}
    return FluxFamily(**(paths | {"tokenizers": files.tokenizers, "t5_max_length": 16} | settings))


def conditioning(family: FluxFamily, prompt: str, dtype: torch.dtype = torch.float32) -> Conditioning:
    encoders = {name: family.load(name, dtype, CPU) for name in family.text_outputs}
    with torch.no_grad():
        outputs = family.encode_text(encoders, family.tokenize([prompt]))
    return Conditioning(outputs, torch.tensor([3.5]))


def velocity(family: FluxFamily, dtype: torch.dtype, words: Conditioning) -> torch.Tensor:
    noisy = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return family.predict(family.load("denoiser", dtype, CPU), noisy, torch.tensor([400.0]), words)


def assert_same_weights(one: FluxFamily, other: FluxFamily, part: str) -> None:
    first, second = (family.load(part, torch.float32, CPU).state_dict() for family in (one, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_parts_load_one_by_one_and_predict_something_that_follows_the_prompt(files: tiny.TinyFlux) -> None:
    family: Family = family_of(files)
    family.check(PARTS)
    parts = Parts(family, CPU)
    words = {p: conditioning(family_of(files), p) for p in ("a cat", "a dog")}
    noisy = torch.randn(1, 16, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cat, dog = (
            family.predict(parts["denoiser"], noisy, torch.tensor([400.0]), w) for w in words.values()
        )
    assert parts.loaded == ["denoiser"]
    assert cat.shape == noisy.shape
    assert cat.isfinite().all()
    assert not torch.allclose(cat, dog, atol=1e-2)
    assert not any(p.requires_grad for p in parts["denoiser"].parameters())


def test_options_of_training_and_of_generation_make_the_same_family(files: tiny.TinyFlux) -> None:
    encoders = {"clip_l": str(files.clip_l), "t5xxl": str(files.t5xxl), "ae": str(files.ae)}
    base = ModelConfig(
        pretrained_model_name_or_path=str(files.transformer), tokenizer_cache_dir=str(files.tokenizers)
    )
    training = Run("flux_train_network", "flux", [base, FluxOptions(**encoders, t5xxl_max_token_length=20)])
    generation = Run(
        "flux_minimal_inference",
        "flux",
        [FluxGenerationOptions(ckpt_path=str(files.transformer), **encoders)],
        files=script_named("flux_minimal_inference").files,
    )
    for run, length in ((training, 20), (generation, 512)):
        family = family_for(run)
        family.check(PARTS)  # without --tokenizer_cache_dir those beside the denoiser are taken
        assert family.tokenize(["a cat"])["t5xxl"].shape == (1, length)
        assert family.source("vae") == files.ae


@pytest.mark.parametrize(("schnell", "length", "steps"), [(False, 512, 50), (True, 256, 4)])
def test_the_variant_is_read_off_the_file(tmp_path: Path, schnell: bool, length: int, steps: int) -> None:
    family = family_of(tiny.flux(tmp_path, schnell=schnell), t5_max_length=None)
    assert (family.t5_max_length, family.sampling.steps) == (length, steps)
    assert family.identity.architecture == ("flux-1-schnell" if schnell else "flux-1-dev")
    words = conditioning(family, "a cat")
    without = Conditioning(words.text, None)
    if schnell:
        assert torch.equal(velocity(family, torch.float32, words), velocity(family, torch.float32, without))
    else:
        with pytest.raises(ValueError, match="guidance"):
            velocity(family, torch.float32, without)


def test_padding_reaches_the_denoiser_only_without_the_mask(files: tiny.TinyFlux) -> None:
    plain, masked = family_of(files), family_of(files, apply_t5_mask=True)
    words = conditioning(plain, "a cat")
    padded = dict(words.text)
    padded["t5_out"] = padded["t5_out"] + 3 * (padded["t5_attn_mask"] == 0)[..., None]
    changed = Conditioning(padded, words.guidance)
    assert torch.allclose(velocity(masked, torch.float32, words), velocity(masked, torch.float32, changed))
    assert not torch.allclose(velocity(plain, torch.float32, words), velocity(plain, torch.float32, changed))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.05), (torch.float8_e4m3fn, 0.3)])
def test_smaller_number_formats_predict_nearly_the_same(
    files: tiny.TinyFlux, dtype: torch.dtype, tolerance: float
) -> None:
    family = family_of(files)
    words = conditioning(family, "a cat")
    exact, rough = velocity(family, torch.float32, words), velocity(family, dtype, words)
    assert rough.dtype is torch.float32
    assert 0 < (rough - exact).norm() / exact.norm() < tolerance
    small = conditioning(family, "a cat", dtype).text
    assert (small["t5_out"] - words.text["t5_out"]).norm() / words.text["t5_out"].norm() < tolerance


def test_files_stored_in_fp8_load_as_they_are_and_in_wider_formats(tmp_path: Path) -> None:
    files = tiny.flux(tmp_path, dtype=torch.float8_e4m3fn, text_dtype=torch.float8_e4m3fn)
    family = family_of(files)
    stored = family.load("denoiser", torch.float8_e4m3fn, CPU)
    raw = load_file(files.transformer)
    name = "double_blocks.0.img_attn.qkv.weight"
    assert torch.equal(stored.get_parameter(name).view(torch.uint8), raw[name].view(torch.uint8))
    assert stored.get_parameter("img_in.weight").dtype is torch.bfloat16
    words = conditioning(family, "a cat", torch.float8_e4m3fn)
    wide, narrow = velocity(family, torch.bfloat16, words), velocity(family, torch.float8_e4m3fn, words)
    assert torch.equal(wide, narrow)
    t5 = family.load("t5xxl", torch.float8_e4m3fn, CPU)
    assert t5.get_parameter("encoder.block.0.layer.1.DenseReluDense.wo.weight").dtype is torch.float8_e4m3fn
    assert t5.get_parameter("shared.weight") is t5.get_parameter("encoder.embed_tokens.weight")


def test_folder_and_shards_of_diffusers_load_like_the_single_file(
    files: tiny.TinyFlux, tmp_path: Path
) -> None:
    tensors = flux_weights(load_file(files.transformer))
    folder = tmp_path / "flux" / "transformer"
    folder.mkdir(parents=True)
    names = sorted(tensors)
    stem = "diffusion_pytorch_model"
    halves = {f"{stem}-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, part in halves.items():
        save_file({name: tensors[name].contiguous() for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    for part, source in (("text_encoder", files.clip_l), ("text_encoder_2", files.t5xxl), ("vae", files.ae)):
        (tmp_path / "flux" / part).mkdir()
        (tmp_path / "flux" / part / "model.safetensors").write_bytes(source.read_bytes())
    ours = family_of(files)
    family = FluxFamily(tmp_path / "flux", tokenizers=files.tokenizers, t5_max_length=16)
    family.check(PARTS)
    for part in PARTS:
        assert_same_weights(family, ours, part)
    assert_same_weights(FluxFamily(folder / f"{stem}-00001-of-00002.safetensors"), ours, "denoiser")


@pytest.mark.parametrize("part", ["denoiser", "clip_l", "t5xxl"])
def test_every_part_learns_the_same_with_its_blocks_recomputed(files: tiny.TinyFlux, part: str) -> None:
    family = family_of(files)
    words = conditioning(family, "a cat")
    tokens = family.tokenize(["a cat"])
    results = []
    for recompute in (False, True):
        model = family.load(part, torch.float32, CPU).requires_grad_(True)
        if recompute:
            assert len(family.blocks(part, model)) == (4 if part == "denoiser" else 2)
            checkpointing.enable(family.blocks(part, model))
        if part == "denoiser":
            out = family.predict(model, torch.ones(1, 16, 4, 4), torch.tensor([300.0]), words)
        else:
            out = family.encode_text({part: model}, tokens)[family.text_outputs[part][0]]
        out.square().sum().backward()
        results.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
    assert len(results[0]) > 10
    assert all(torch.equal(kept, again) for kept, again in zip(*results, strict=True))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_saved_as_it_was_published(files: tiny.TinyFlux, tmp_path: Path, part: str) -> None:
    family = family_of(files)
    source = family.source(part)
    assert source is not None
    trained = {part: tensors_of(family.load(part, torch.float32, CPU))}
    family.write(trained, tmp_path / "x.safetensors", Publishing(metadata={"a": "b"}))
    saved, original = load_file(tmp_path / "x.safetensors"), load_file(source)
    assert saved.keys() == original.keys()
    assert all(torch.equal(saved[name], original[name]) for name in saved)
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"a": "b"}


def test_fp8_weights_are_saved_in_the_format_that_is_asked_for(files: tiny.TinyFlux, tmp_path: Path) -> None:
    family = family_of(files)
    model = family.load("denoiser", torch.float8_e4m3fn, CPU)
    family.write(
        {"denoiser": tensors_of(model)}, tmp_path / "x.safetensors", Publishing(dtype=torch.bfloat16)
    )
    assert {value.dtype for value in load_file(tmp_path / "x.safetensors").values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("num_steps", "side", "variant", "expected"),
    [
        (4, 256, "schnell", [1.0, 0.75, 0.5, 0.25, 0.0]),
        (4, 256, "dev", [1.0, 0.8318243, 0.6224593, 0.3546613, 0.0]),
        (4, 1024, "dev", [1.0, 0.9045307, 0.7595109, 0.5128441, 0.0]),
    ],
)
def test_dev_samples_at_noise_levels_that_depend_on_size(
    tmp_path: Path, num_steps: int, side: int, variant: str, expected: list[float]
) -> None:
    family = family_of(tiny.flux(tmp_path, schnell=variant == "schnell"))
    assert family.sampling_sigmas(num_steps, side, side).tolist() == pytest.approx(expected, abs=1e-6)


def test_packing_is_undone_and_follows_the_places() -> None:
    latents = torch.arange(2 * 3 * 4 * 6, dtype=torch.float32).reshape(2, 3, 4, 6)
    tokens = pack(latents)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(unpack(tokens, 4, 6), latents)
    ids = image_ids(2, 4, 6, CPU)
    assert ids[0].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 0], [0, 1, 1], [0, 1, 2]]
    assert tokens[0, 4].tolist() == latents[0, :, 2:4, 2:4].flatten().tolist()


def test_small_autoencoders_set_the_geometry_of_latents(tmp_path: Path) -> None:
    files = tiny.flux(tmp_path, latent_channels=4)
    family = family_of(files)
    family.check(PARTS)
    assert family.latents.channels == 4
    pixels = torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        vae = family.load("vae", torch.float32, CPU)
        mean = family.encode_image(vae, pixels, None)
        draws = [family.encode_image(vae, pixels, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert mean.shape == (1, 4, 4, 6)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def expect_error(family: FluxFamily, part: str, *words: str) -> None:
    for act in (lambda: family.check([part]), lambda: family.load(part, torch.float32, CPU)):
        with pytest.raises(UserError) as caught:
            act()
        message = str(caught.value)
        assert "\n" not in message
        assert all(word in message for word in words), message


def test_a_wrong_file_is_named_for_what_it_is(files: tiny.TinyFlux, tmp_path: Path) -> None:
    foreign = {
        "an SDXL checkpoint": "conditioner.embedders.1.model.ln_final.weight",
        "a LoRA": "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
    }
    for description, name in foreign.items():
        save_file({name: torch.zeros(2, 2)}, tmp_path / "x.safetensors")
        wrong = family_of(files, transformer=tmp_path / "x.safetensors")
        expect_error(wrong, "denoiser", "--pretrained_model_name_or_path", "x.safetensors", description)
    expect_error(family_of(files, clip_l=files.t5xxl), "clip_l", "--clip_l", "a T5 text encoder")
    expect_error(family_of(files, t5xxl=files.ae), "t5xxl", "--t5xxl", "an autoencoder")
    expect_error(family_of(files, ae=files.transformer), "vae", "--ae", "a FLUX.1 transformer")


def test_a_missing_truncated_or_unnamed_file_is_one_clear_line(files: tiny.TinyFlux, tmp_path: Path) -> None:
    data = files.transformer.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: len(data) // 2])
    expect_error(family_of(files, transformer=tmp_path / "cut.safetensors"), "denoiser", "truncated")
    expect_error(
        family_of(files, ae=tmp_path / "none.safetensors"), "vae", "none.safetensors", "does not exist"
    )
    expect_error(family_of(files, t5xxl=None), "t5xxl", "--t5xxl is not given")


def test_a_file_that_lacks_tensors_or_has_strange_ones_is_refused(
    files: tiny.TinyFlux, tmp_path: Path
) -> None:
    tensors = load_file(files.transformer)
    path = tmp_path / "x.safetensors"
    save_file({k: v for k, v in tensors.items() if k != "single_blocks.1.linear2.weight"}, path)
    with pytest.raises(UserError, match=r"lacks 1 tensor .*single_blocks\.1\.linear2\.weight"):
        family_of(files, transformer=path).load("denoiser", torch.float32, CPU)
    save_file(tensors | {"strange.weight": torch.zeros(1)}, path)
    with pytest.raises(UserError, match=r"strange\.weight"):
        family_of(files, transformer=path).load("denoiser", torch.float32, CPU)
    save_file(tensors | {"img_in.bias": torch.zeros(3)}, path)
    with pytest.raises(UserError, match=r"x\.safetensors: img_in\.bias is \(3,\), .*\(64,\)"):
        family_of(files, transformer=path).load("denoiser", torch.float32, CPU)
    prefixed = {f"model.diffusion_model.{k}": v for k, v in tensors.items()} | {"vae.x": torch.zeros(1)}
    save_file(prefixed, path)
    assert_same_weights(family_of(files, transformer=path), family_of(files), "denoiser")


@pytest.mark.parametrize(
    ("part", "missing"),
    [
        ("denoiser", "txt_in.weight"),
        ("clip_l", "text_model.encoder.layers.0.mlp.fc1.weight"),
        ("t5xxl", "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"),
        ("vae", "decoder.mid.block_1.conv1.weight"),
    ],
)
def test_a_missing_tensor_is_named(files: tiny.TinyFlux, tmp_path: Path, part: str, missing: str) -> None:
    option = {"denoiser": "transformer", "vae": "ae"}.get(part, part)
    source = family_of(files).source(part)
    assert source is not None
    rest = {name: value for name, value in load_file(source).items() if name != missing}
    save_file(rest, tmp_path / "part.safetensors")
    family = family_of(files, **{option: tmp_path / "part.safetensors"})
    with pytest.raises(UserError, match=r"part\.safetensors lacks "):
        family.load(part, torch.float32, CPU)


def test_half_an_autoencoder_is_no_autoencoder(files: tiny.TinyFlux, tmp_path: Path) -> None:
    rest = {name: value for name, value in load_file(files.ae).items() if name.startswith("decoder.")}
    save_file(rest, tmp_path / "part.safetensors")
    expect_error(family_of(files, ae=tmp_path / "part.safetensors"), "vae", "--ae", "no model that is known")


def test_parts_that_do_not_belong_together_are_refused_before_loading(
    files: tiny.TinyFlux, tmp_path: Path
) -> None:
    other = tiny.flux(tmp_path, latent_channels=4)
    with pytest.raises(UserError, match=r"--ae is .*16 wide, but the denoiser takes 64"):
        family_of(files, ae=other.ae).check(PARTS)
    clip = dict(tiny.clip_l(600, width=128))
    save_file(tiny.random_weights(clip, 0), tmp_path / "wide.safetensors")
    with pytest.raises(UserError, match=r"--clip_l is .*128 wide, but the denoiser takes 64"):
        family_of(files, clip_l=tmp_path / "wide.safetensors").check(PARTS)


def test_what_takes_a_tokenizers_place_reads_the_captions(files: tiny.TinyFlux) -> None:
    family = family_of(files)
    usual = family.tokenizers["clip_l"]
    before = family.tokenize(["a cat", "a red dog"])["clip_l"]
    family.tokenizers["clip_l"] = lambda texts, length: usual(["a red dog" for _ in texts], length)  # type: ignore[assignment]
    after = family.tokenize(["a cat"])["clip_l"]
    assert torch.equal(after[0], before[1])
    assert not torch.equal(after[0], before[0])


def test_a_controlnet_is_read_again_but_not_for_a_model_of_another_size(
    files: tiny.TinyFlux, tmp_path: Path
) -> None:
    family, path = family_of(files), tmp_path / "net.safetensors"
    state = family.load_control(None, torch.float32, CPU).state_dict()
    save_file(state, path)
    again = family.load_control(path, torch.float32, CPU).state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)
    larger = tiny.flux(tmp_path / "larger", hidden=128, heads=4)
    with pytest.raises(UserError, match=r"net\.safetensors, a ControlNet for a model of another size"):
        family_of(larger).load_control(path, torch.float32, CPU)
