"""Stable Diffusion 1, 2 and XL on tiny models in the real file formats, beside diffusers' pipelines."""

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sfumato.config.run.data.captions import CaptionConfig
from sfumato.config.run.model.hub_access import HubAccessConfig
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.errors import UserError
from sfumato.models.components.stable_diffusion.predicted import Predicted
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sd.layouts import TEXT
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.conditioning import Conditioning, ImageSizes
from sfumato.models.interface.family import DENOISER, VAE, Prediction, ReadsEmphasis
from sfumato.models.interface.identity import ModelIdentity
from sfumato.models.interface.publishing import Layout, Publishing, TrainedParts, tensors_of
from sfumato.models.registry.families import family_for
from sfumato.nn import checkpointing
from tests import tiny
from tests.hub import stand_in
from tests.pipelines import pipeline_from

pytestmark = pytest.mark.whole_model

CPU = torch.device("cpu")
KINDS = ("sd1", "sd2", "sdxl")
PROMPTS = ["a cat photo", "red sky"]
AnyFamily = SdFamily | SdxlFamily
ROOTS: list[Path] = []
"""Where the files lie that `write` copies."""

PROJECTION = "conditioner.embedders.1.model.text_projection"


@pytest.fixture(scope="module", autouse=True)
def _originals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    write_once.cache_clear()
    ROOTS.append(tmp_path_factory.mktemp("originals"))
    yield
    ROOTS.clear()


def write(kind: str, folder: Path, **options: Any) -> tiny.TinyCheckpoint:
    """Write a tiny checkpoint into a folder: a copy of what all tests share that ask for the same."""
    root, written = write_once(kind, **options)
    shutil.copytree(root, folder, dirs_exist_ok=True)
    path, tokenizers = (folder / place.relative_to(root) for place in (written.path, written.tokenizers))
    return replace(written, path=path, tokenizers=tokenizers)


@cache
def write_once(kind: str, **options: Any) -> tuple[Path, tiny.TinyCheckpoint]:
    root = ROOTS[-1] / str(write_once.cache_info().currsize)
    if kind == "sdxl":
        return root, tiny.sdxl(root, **options)
    return root, tiny.sd(root, v2=kind == "sd2", **options)


def family_of(kind: str, path: Path, tokenizers: Path | None, **options: Any) -> AnyFamily:
    if kind == "sdxl":
        return SdxlFamily(path, tokenizers=tokenizers, **options)
    return SdFamily(path, tokenizers=tokenizers, is_v2=kind == "sd2", **options)


def load_all(family: AnyFamily, dtype: torch.dtype = torch.float32) -> dict[str, nn.Module]:
    return {part: family.load(part, dtype, CPU) for part in (*family.text_outputs, DENOISER, VAE)}


def loaded_parts(family: AnyFamily) -> TrainedParts:
    return {part: tensors_of(model) for part, model in load_all(family).items()}


@dataclass(frozen=True)
class Files:
    """One tiny model in both layouts, our parts of the file and diffusers' pipeline of the same weights.

    Nobody may change the parts; a test that does loads its own.
    """

    kind: str
    file: Path
    folder: Path
    tokenizers: Path
    public: Any
    models: dict[str, nn.Module]

    def family(self, layout: str = "file", **options: Any) -> AnyFamily:
        if layout == "file":
            return family_of(self.kind, self.file, self.tokenizers, **options)
        return family_of(self.kind, self.folder, None, **options)  # the folder brings its tokenizers along


@pytest.fixture(scope="module", params=KINDS)
def files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = tmp_path_factory.mktemp(request.param)
    written = write(request.param, root, as_folder=True)
    file = root / f"{request.param}.safetensors"
    public = pipeline_from(file, request.param, written.tokenizers)
    models = load_all(family_of(request.param, file, written.tokenizers))
    return Files(request.param, file, written.path, written.tokenizers, public, models)


def framed(batch: int = 2) -> ImageSizes:
    original, crop = torch.tensor([[640, 512]] * batch), torch.tensor([[0, 16]] * batch)
    return ImageSizes(original, crop, torch.tensor([[64, 64]] * batch))


def noisy_batch() -> tuple[Tensor, Tensor]:
    """Return noisy latents and their timesteps."""
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3.0, 871.0])


def difference(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
@pytest.mark.parametrize("layout", ["file", "folder"])
def test_every_part_computes_what_diffusers_does(files: Files, layout: str) -> None:
    family, public = files.family(layout), files.public
    family.check([*family.text_outputs, DENOISER, VAE])
    models = load_all(family) if layout == "folder" else files.models
    words = family.encode_text(models, family.tokenize(PROMPTS))
    told = {}
    if files.kind == "sdxl":
        context, _, pooled, _ = public.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
        ours = torch.cat([words["hidden_state1"], words["hidden_state2"]], dim=-1)
        assert difference(words["pool2"], pooled) < 1e-5
        ids = torch.tensor([[640, 512, 0, 16, 64, 64]] * 2).float()
        told = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    else:
        context, _ = public.encode_prompt(PROMPTS, CPU, 1, False)
        ours = words["hidden_state"]
    assert difference(ours, context) < 1e-5

    noisy, steps = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([3.0, 871.0]),
    )
    output = family.predict(models[DENOISER], noisy, steps, Conditioning(words, sizes=framed()))
    assert difference(output, public.unet(noisy, steps, context, **told).sample) < 1e-5

    pixels = torch.rand(1, 3, 64, 48, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = family.encode_image(models[VAE], pixels, None)
    scale = public.vae.config.scaling_factor
    assert difference(latents, public.vae.encode(pixels).latent_dist.mean * scale) < 1e-5
    assert (
        difference(family.decode_image(models[VAE], latents), public.vae.decode(latents / scale).sample)
        < 1e-5
    )


def test_a_file_that_is_loaded_and_saved_has_the_same_bytes(files: Files, tmp_path: Path) -> None:
    family = files.family()
    family.write(loaded_parts(family), tmp_path / "again.safetensors", Publishing())
    assert (tmp_path / "again.safetensors").read_bytes() == files.file.read_bytes()


def test_parts_that_are_not_given_come_from_the_base(files: Files, tmp_path: Path) -> None:
    family = files.family()
    denoiser = tensors_of(family.load(DENOISER, torch.float32, CPU))
    family.write({DENOISER: denoiser}, tmp_path / "again.safetensors", Publishing())
    assert (tmp_path / "again.safetensors").read_bytes() == files.file.read_bytes()


def test_a_folder_becomes_the_file_it_was_made_of(files: Files, tmp_path: Path) -> None:
    family = files.family("folder")
    family.write(loaded_parts(family), tmp_path / "again.safetensors", Publishing(metadata={"a": "b"}))
    found, expected = load_file(tmp_path / "again.safetensors"), load_file(files.file)
    # What the model does not use is not in a folder: the schedule, and a last layer that nothing listens to.
    assert expected.keys() - found.keys() <= {"betas"}
    assert found.keys() <= expected.keys()
    unused = ("transformer.resblocks.2.", "text_projection") if files.kind == "sd2" else ()
    for name, tensor in found.items():
        if not name.endswith("logit_scale") and not any(word in name for word in unused):
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("as_safetensors", [True, False])
def test_a_saved_folder_opens_in_diffusers_with_the_same_weights(
    files: Files, as_safetensors: bool, tmp_path: Path
) -> None:
    import diffusers

    family = files.family()
    family.write({}, tmp_path, Publishing(Layout.FOLDER, as_safetensors=as_safetensors))
    name = "StableDiffusionXLPipeline" if files.kind == "sdxl" else "StableDiffusionPipeline"
    opened = getattr(diffusers, name).from_pretrained(tmp_path, use_safetensors=as_safetensors)
    for part in ("unet", "vae", "text_encoder", *(["text_encoder_2"] if files.kind == "sdxl" else [])):
        found, expected = (getattr(p, part).state_dict() for p in (opened, files.public))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found), part
    assert opened.vae.config.scaling_factor == family.latents.scale
    assert opened.unet.config.attention_head_dim == files.public.unet.config.attention_head_dim
    assert opened.scheduler.config.beta_schedule == "scaled_linear"
    weights = {path.suffix for path in tmp_path.rglob("*") if path.parent.name in ("unet", "text_encoder")}
    assert (".bin" in weights) != as_safetensors


def test_a_pickled_checkpoint_counts_on_from_its_base(tmp_path: Path) -> None:
    base = write("sd1", tmp_path, suffix=".ckpt")
    family = family_of("sd1", base.path, base.tokenizers)
    how = Publishing(dtype=torch.float16, epoch=2, step=50)
    family.write(loaded_parts(family), tmp_path / "again.ckpt", how)
    content = torch.load(tmp_path / "again.ckpt", weights_only=True)
    assert (content["epoch"], content["global_step"]) == (5, 750)
    weights, before = content["state_dict"], torch.load(base.path, weights_only=True)["state_dict"]
    assert weights.keys() == before.keys()
    name = "model.diffusion_model.out.2.weight"
    assert torch.equal(weights[name], before[name].half())
    assert weights["betas"].dtype == torch.float32  # no part's own tensor, so kept as it is


def test_single_parts_are_written_under_published_names(files: Files, tmp_path: Path) -> None:
    family, whole = files.family(), load_file(files.file)
    parts = {part: tensors_of(model) for part, model in files.models.items()}
    family.write(parts, tmp_path / "x.safetensors", Publishing(Layout.PART_FILES))
    for part in parts:
        found = load_file(tmp_path / ("x.safetensors" if part == DENOISER else f"x_{part}.safetensors"))
        if part == VAE:
            assert all(torch.equal(t, whole[f"first_stage_model.{name}"]) for name, t in found.items())
        elif part == DENOISER:
            assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())
        else:
            assert "text_model.final_layer_norm.weight" in found


@pytest.mark.parametrize("form", ["bare file", "with prefix", "folder", "older names"])
def test_another_autoencoder_replaces_the_own(form: str, tmp_path: Path) -> None:
    base, other = write("sd1", tmp_path / "a"), write("sd1", tmp_path / "b", seed=9, as_folder=True)
    whole = load_file(tmp_path / "b" / "sd1.safetensors")
    vae = tmp_path / "vae.safetensors"
    own = {name: tensor for name, tensor in whole.items() if name.startswith("first_stage_model.")}
    bare = {name.removeprefix("first_stage_model."): tensor for name, tensor in own.items()}
    if form == "with prefix":
        save_file(own | {"betas": whole["betas"]}, vae)
    elif form == "bare file":
        save_file(bare | {"loss.logvar": torch.zeros(1)}, vae)
    elif form == "folder":
        vae = other.path
    else:
        names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        older = {}
        for name, tensor in load_file(next((other.path / "vae").glob("*.safetensors"))).items():
            for new, old in names.items() if "attentions" in name else ():
                name = name.replace(f".{new}.", f".{old}.")
            older[name] = tensor
        assert any("proj_attn" in name for name in older)
        save_file(older, vae)
    family = SdFamily(base.path, vae, base.tokenizers)
    family.check([VAE, DENOISER])
    found = family.load(VAE, torch.float32, CPU).state_dict()
    expected = family_of("sd1", tmp_path / "b" / "sd1.safetensors", None).load(VAE, torch.float32, CPU)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.state_dict().items())


def pooled(path: Path, tokenizers: Path) -> Tensor:
    family = SdxlFamily(path, tokenizers=tokenizers)
    encoder = family.load("text_encoder2", torch.float32, CPU)
    with torch.no_grad():
        return family.encode_text({"text_encoder2": encoder}, family.tokenize(PROMPTS))["pool2"]


@pytest.mark.parametrize("projection", [tiny.CLIP_G_WIDTH, 96], ids=["square", "oblong"])
def test_a_transposed_text_projection_is_recognised(projection: int, tmp_path: Path) -> None:
    base = tiny.sdxl(tmp_path, projection=projection)
    right = pooled(base.path, base.tokenizers)
    tensors = load_file(base.path)
    tensors[PROJECTION] = tensors[PROJECTION].T.contiguous()
    del tensors["conditioner.embedders.1.model.logit_scale"]  # sd-scripts has none to write in this case
    turned = tmp_path / "turned.safetensors"
    save_file(tensors, turned, {"modelspec.architecture": "stable-diffusion-xl-v1-base"})
    assert torch.equal(pooled(turned, base.tokenizers), right)

    family = SdxlFamily(turned, tokenizers=base.tokenizers)
    family.write({}, tmp_path / "saved.safetensors", Publishing(metadata={"modelspec.title": "again"}))
    assert torch.equal(pooled(tmp_path / "saved.safetensors", base.tokenizers), right)


def test_a_projection_under_the_linear_layers_name_is_read(tmp_path: Path) -> None:
    base = tiny.sdxl(tmp_path)
    tensors = load_file(base.path)
    tensors[f"{PROJECTION}.weight"] = tensors.pop(PROJECTION).T.contiguous()
    save_file(tensors, tmp_path / "named.safetensors")
    assert torch.equal(
        pooled(tmp_path / "named.safetensors", base.tokenizers), pooled(base.path, base.tokenizers)
    )


def test_a_file_without_logit_scale_or_metadata_is_taken_as_published(tmp_path: Path) -> None:
    base = tiny.sdxl(tmp_path)
    tensors = load_file(base.path)
    del tensors["conditioner.embedders.1.model.logit_scale"]
    save_file(tensors, tmp_path / "plain.safetensors")
    assert torch.equal(
        pooled(tmp_path / "plain.safetensors", base.tokenizers), pooled(base.path, base.tokenizers)
    )


@pytest.mark.parametrize("weights_format", ["fp16 variant", "shards"])
def test_folders_come_in_several_forms(weights_format: str, tmp_path: Path) -> None:
    folder = write("sd1", tmp_path, as_folder=True).path / "unet"
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    path.unlink()
    if weights_format == "shards":
        names = sorted(tensors)
        for number, part in enumerate((names[:300], names[300:]), 1):
            shard = folder / f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
            save_file({name: tensors[name] for name in part}, shard)
    else:
        half = {name: tensor.half() for name, tensor in tensors.items()}
        save_file(half, folder / "diffusion_pytorch_model.fp16.safetensors")
    family = family_of("sd1", folder.parent, None)
    family.check([DENOISER])
    found = family.load(DENOISER, torch.float32, CPU).state_dict()
    rounded = weights_format == "fp16 variant"
    assert all(torch.equal(t, tensors[n].half().float() if rounded else tensors[n]) for n, t in found.items())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
@torch.no_grad()
def test_small_number_formats_compute_nearly_the_same(files: Files, dtype: torch.dtype) -> None:
    family = files.family()
    exact, small = files.models, load_all(family, dtype)
    noisy, steps = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([3.0, 871.0]),
    )
    outputs = []
    for models in (exact, small):
        words = family.encode_text(models, family.tokenize(PROMPTS))
        outputs.append(family.predict(models[DENOISER], noisy, steps, Conditioning(words, sizes=framed())))
    assert difference(outputs[1], outputs[0]) < (0.3 if dtype is torch.float8_e4m3fn else 0.05)
    stored = {parameter.dtype for parameter in small[DENOISER].parameters()}
    assert stored == {dtype, torch.bfloat16}


def test_checkpointed_blocks_give_the_same_gradients(files: Files) -> None:
    family = files.family()
    denoiser = family.load(DENOISER, torch.float32, CPU)
    with torch.no_grad():
        words = family.encode_text(files.models, family.tokenize(PROMPTS))
    noisy, steps = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
        torch.tensor([3.0, 871.0]),
    )
    weight = denoiser.get_parameter("conv_in.weight").requires_grad_(True)

    def gradient() -> Tensor:
        output = family.predict(denoiser, noisy, steps, Conditioning(words, sizes=framed()))
        return torch.autograd.grad(output.square().mean(), weight)[0]

    plain = gradient()
    blocks = family.blocks(DENOISER, denoiser)
    checkpointing.enable(blocks)
    assert difference(gradient(), plain) < 1e-5
    leaves = {id(block) for block in blocks}
    assert len(leaves) == len(blocks) > 20
    assert {type(block).__name__ for block in blocks} == {"ResnetBlock2D", "BasicTransformerBlock"}


def test_blocks_are_listed_in_execution_order(files: Files) -> None:
    family = files.family()
    denoiser = family.load(DENOISER, torch.float32, CPU)
    blocks, seen = family.blocks(DENOISER, denoiser), []
    for block in blocks:
        block.register_forward_hook(lambda module, *_: seen.append(module))
    words = family.encode_text(files.models, family.tokenize(PROMPTS))
    family.predict(
        denoiser, torch.zeros(2, 4, 8, 8), torch.tensor([1.0, 2.0]), Conditioning(words, sizes=framed())
    )
    assert seen == blocks


def test_long_captions_and_emphasis_come_from_the_runs_options(files: Files) -> None:
    model = ModelConfig(
        v2=files.kind == "sd2",
        pretrained_model_name_or_path=str(files.file),
        tokenizer_cache_dir=str(files.tokenizers),
    )
    captions = CaptionConfig(max_token_length=150, weighted_captions=True)
    family = family_for(Run("x", files.kind[:2] if files.kind != "sdxl" else "sdxl", [model, captions]))
    assert isinstance(family, ReadsEmphasis)
    tokens = family.tokenize(["a (cat:1.5)"])
    assert set(tokens) == {n for part in family.text_outputs for n in (part, f"{part}_weights")}
    assert all(tensor.shape == (1, 2, 77) for tensor in tokens.values())
    states = family.encode_text(files.models, tokens)
    assert {tensor.shape[1] for tensor in states.values() if tensor.ndim == 3} == {152}
    assert set(states) == {name for names in family.text_outputs.values() for name in names}


def test_identities_are_those_that_sd_scripts_records(tmp_path: Path) -> None:
    def identity(**options: Any) -> ModelIdentity:
        return SdFamily(None, **options).identity

    assert identity().base_version == "sd_v1"
    assert identity(is_v2=True).architecture == "stable-diffusion-v2-512"
    velocity = identity(is_v2=True, predicted=Predicted(Prediction.VELOCITY))
    assert (velocity.base_version, velocity.architecture) == ("sd_v2_v", "stable-diffusion-v2-768-v")
    assert (velocity.resolution, velocity.prediction_type) == ((768, 768), "v")
    assert SdFamily(None, predicted=Predicted(Prediction.VELOCITY)).prediction is Prediction.VELOCITY
    assert SdxlFamily(None).identity.base_version == "sdxl_base_v1-0"


def take_depth(path: Path) -> None:
    tensors = load_file(path)
    name = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[name] = torch.zeros(32, 5, 3, 3)
    save_file(tensors, path)


def drop_unet(path: Path) -> None:
    kept = {n: t for n, t in load_file(path).items() if not n.startswith("model.diffusion_model.")}
    save_file(kept, path)


def cut_unet(path: Path) -> None:
    tensors = load_file(path)
    del tensors["model.diffusion_model.input_blocks.4.1.norm.weight"]
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (take_depth, "makes 4 channels and the UNet takes 5"),
        (drop_unet, "Stable Diffusion 1 checkpoint"),
        (Path.unlink, "does not exist"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "truncated"),
    ],
)
def test_files_that_will_not_do_are_found_before_loading(
    damage: Callable[[Path], Any], message: str, tmp_path: Path
) -> None:
    base = write("sd1", tmp_path)
    damage(base.path)
    family = family_of("sd1", base.path, base.tokenizers)
    with pytest.raises(UserError, match=message) as raised:
        family.check([DENOISER, VAE])
    assert str(base.path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_layer_that_the_text_encoder_has_not_is_found_before_loading(
    as_folder: bool, tmp_path: Path
) -> None:
    base = write("sd1", tmp_path, as_folder=as_folder)
    family_of("sd1", base.path, base.tokenizers, clip_skip=2).check([DENOISER, TEXT])
    with pytest.raises(UserError, match="--clip_skip is 3; this text encoder has 2 layers"):
        family_of("sd1", base.path, base.tokenizers, clip_skip=3).check([DENOISER, TEXT])


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    base = write("sd1", tmp_path)
    cut_unet(base.path)
    with pytest.raises(UserError, match=r"lacks 1 tensor of a Stable Diffusion UNet, .*norm.weight"):
        family_of("sd1", base.path, None).load(DENOISER, torch.float32, CPU)


@pytest.mark.parametrize(
    ("written", "asked", "message"),
    [
        ("sd1", "sd2", "it seems to be a Stable Diffusion 1 checkpoint; leave out --v2"),
        ("sd2", "sd1", "it seems to be a Stable Diffusion 2 checkpoint; add --v2"),
        ("sdxl", "sd1", "an SDXL checkpoint, a base for `sfumato train sdxl`; give a Stable Diffusion 1"),
        ("sd1", "sdxl", "a Stable Diffusion 1 checkpoint, a base for `sfumato train sd`; give an SDXL"),
    ],
)
@pytest.mark.parametrize("as_folder", [False, True])
def test_another_model_is_recognised(
    written: str, asked: str, message: str, as_folder: bool, tmp_path: Path
) -> None:
    base = write(written, tmp_path, as_folder=as_folder)
    expected = message.split(";")[-1] if as_folder else message  # a folder's UNet is looked at alone
    with pytest.raises(UserError, match=expected):
        family_of(asked, base.path, base.tokenizers).check([DENOISER])


def test_a_name_that_is_no_path_and_not_in_the_hubs_cache_gets_advice() -> None:
    model = ModelConfig(pretrained_model_name_or_path="nobody/no-such-model")
    with pytest.raises(UserError, match="fetch it with `hf download nobody/no-such-model`"):
        family_for(Run("x", "sd", [model, HubAccessConfig(offline=True)]))


@pytest.mark.parametrize("path", ["nobody/model.ckpt", "tests/no-such-model", "../model", "tests/b/c"])
def test_a_path_that_does_not_exist_is_no_name_on_the_hub(path: str) -> None:
    with pytest.raises(UserError, match=f"is {re.escape(path)}, which does not exist; give a Stable"):
        family_for(Run("x", "sd", [ModelConfig(pretrained_model_name_or_path=path)])).check([DENOISER])


def test_a_folder_on_the_hub_needs_no_more_than_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = write("sd1", tmp_path, as_folder=True).path
    files = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    content = {path.relative_to(base).as_posix(): data for path, data in files.items()}
    name = ModelConfig(pretrained_model_name_or_path="lab/sd@main", vae="lab/sd")
    with stand_in.serving() as hub:
        hub.repos["lab/sd"] = stand_in.Repo({**content, "sd.safetensors": b"", "unet/unet.fp16.bin": b""})
        stand_in.use(hub, tmp_path / "cache", monkeypatch)
        family = family_for(Run("x", "sd", [name]))
        family.check([DENOISER, VAE, *family.text_outputs])
        assert not hub.asked("/sd.safetensors") + hub.asked("fp16")
        hub.log.clear()
        family_for(Run("x", "sd", [name, HubAccessConfig(offline=True)])).check([DENOISER])
        assert hub.log == []


def test_a_model_in_the_hubs_cache_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    write("sd1", tmp_path, as_folder=True).path.rename(snapshot)
    reference = tmp_path / "hub" / "models--someone--tiny" / "refs" / "main"
    reference.parent.mkdir()
    reference.write_text("abc")
    family = family_for(Run("x", "sd", [ModelConfig(pretrained_model_name_or_path="someone/tiny")]))
    family.check([DENOISER, VAE, "text_encoder"])
    assert family.source(DENOISER) == snapshot / "unet"
