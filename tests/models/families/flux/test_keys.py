"""Names and shapes of full-size models equal those of the published files."""

import gzip
from pathlib import Path

import pytest
import torch

from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.families.flux.keys import from_diffusers, table_for
from sfumato.models.families.flux.network import Flux, FluxShape
from sfumato.models.interface.publishing import tensors_of
from tests import tiny
from tests.pipelines import flux_weights

HERE = Path(__file__).parent / "names"


def rows(name: str) -> list[list[str]]:
    return [
        line.split("\t")
        for line in gzip.decompress((HERE / f"{name}.tsv.gz").read_bytes()).decode().splitlines()
    ]


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    return {key: tuple(int(side) for side in shape.split("x")) for key, _, shape in rows(name)}


def shapes_of(module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_full_size_transformer_has_the_published_names_and_shapes(variant: str) -> None:
    published = shapes(f"flux_{variant}_bfl")
    shape = FluxShape.of(published)
    assert shape == FluxShape(guidance=variant == "dev")
    with torch.device("meta"):
        assert shapes_of(Flux(shape)) == published


def test_class_names_that_other_adapters_select_by_are_kept() -> None:
    with torch.device("meta"):
        model = Flux(FluxShape())
    names = {path: type(module).__name__ for path, module in model.named_modules()}
    assert names["double_blocks.18"] == "DoubleStreamBlock"
    assert names["single_blocks.37"] == "SingleStreamBlock"
    assert names["double_blocks.0.img_attn"] == "SelfAttention"
    assert names["double_blocks.0.txt_mod"] == names["single_blocks.0.modulation"] == "Modulation"
    assert names["time_in"] == "MLPEmbedder"
    assert names["final_layer"] == "LastLayer"
    weights = [
        path.removesuffix(".weight") for path, _ in model.named_parameters() if path.endswith(".weight")
    ]
    assert {names[path] for path in weights} == {"Linear"}


def test_every_published_tensor_is_mapped_to_diffusers() -> None:
    expected: dict[str, list[str]] = {}
    for ours, theirs, note in rows("flux_bfl_to_diffusers"):
        expected.setdefault(ours, []).append(theirs)
        assert ("swap" in note) == ours.startswith("final_layer.adaLN")
    table = from_diffusers(19, 38, guidance=True)
    assert {key: list(source.names) for key, source in table.items()} == expected
    assert {key for key, source in table.items() if source.swaps_halves} == {
        "final_layer.adaLN_modulation.1.weight",
        "final_layer.adaLN_modulation.1.bias",
    }


@pytest.mark.parametrize("variant", ["dev", "schnell"])
def test_diffusers_shapes_join_to_published_shapes(variant: str) -> None:
    theirs = shapes(f"flux_{variant}_diffusers")
    table = table_for(theirs)
    assert {key: source.shape(theirs.__getitem__) for key, source in table.items()} == shapes(
        f"flux_{variant}_bfl"
    )
    assert {name for source in table.values() for name in source.names} == set(theirs)


def test_tensors_survive_the_way_to_diffusers_and_back() -> None:
    tensors = tiny.random_weights(dict(tiny.flux_transformer(32, 2, 2, 1)), seed=3)
    theirs = flux_weights(tensors)
    back = {key: source.join(theirs.__getitem__) for key, source in table_for(theirs).items()}
    assert back.keys() == tensors.keys()
    for key, value in tensors.items():
        assert torch.equal(back[key], value), key


def test_full_size_autoencoder_has_the_published_names_and_shapes() -> None:
    published = shapes("flux_ae_bfl")
    shape = autoencoder.AutoencoderShape.of(published)
    assert shape == autoencoder.AutoencoderShape(16, (128, 256, 512, 512), 2, has_quant_convs=False)
    assert shape == autoencoder.AutoencoderShape.of(shapes("flux_vae_diffusers"))
    assert shape.downscale == 8
    vae = autoencoder.build(shape)
    assert shapes_of(vae) == shapes("flux_vae_diffusers")
    assert {name: value.shape for name, value in autoencoder.published(tensors_of(vae)).items()} == published


def test_autoencoder_names_follow_the_table_both_ways() -> None:
    expected = {ours: theirs for ours, theirs, _ in rows("flux_ae_bfl_to_diffusers_vae")}
    names = autoencoder.diffusers_names(shapes("flux_ae_bfl"))
    assert names == expected
    again = autoencoder.diffusers_names(shapes("flux_vae_diffusers"))
    assert all(old == new for old, new in again.items())


def test_full_size_text_encoders_have_the_published_names_and_shapes() -> None:
    clip = shapes("clip_l")
    bare = {key.removeprefix("text_model."): value for key, value in clip.items()}
    model = text_encoders.build_clip(bare, "quick_gelu", None)
    assert shapes_of(model) == bare
    assert (model.config.num_attention_heads, model.config.eos_token_id) == (12, 49407)
    t5 = shapes("t5xxl")
    assert shapes_of(text_encoders.build_t5(t5)) == t5
