"""LoRAs for FLUX.1 in our naming and in that of diffusers: the same changes, and the published keys."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.files.dialects.reading import Layers, named
from sfumato.adapters.files.dialects.splitting import in_diffusers_names
from sfumato.models.registry.layer_names import names_of

HERE = Path(__file__).parent / "recorded"
QKV = "lora_unet_double_blocks_0_img_attn_qkv"
LINEAR1 = "lora_unet_single_blocks_0_linear1"
WIDTH = 16


def listed(name: str) -> dict[str, tuple[int, ...]]:
    """Return the shapes by key of a recorded file."""
    lines = gzip.decompress((HERE / f"{name}.tsv.gz").read_bytes()).decode().splitlines()
    rows = [line.split("\t") for line in lines]
    return {key: () if shape == "scalar" else tuple(map(int, shape.split("x"))) for key, _, shape in rows}


def lora(name: str, rows: int, columns: int, rank: int, alpha: float, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        f"{name}.lora_down.weight": torch.randn(rank, columns, generator=rng),
        f"{name}.lora_up.weight": torch.randn(rows, rank, generator=rng),
        f"{name}.alpha": torch.tensor(alpha),
    }


def product(tensors: dict[str, Tensor], name: str) -> Tensor:
    down, up = tensors[f"{name}.lora_down.weight"], tensors[f"{name}.lora_up.weight"]
    return up @ down * (float(tensors[f"{name}.alpha"]) / down.shape[0])


def to_theirs(own: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Return our tensors in diffusers' naming, and the layers that have none there."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in own.items():
        name, _, leaf = key.partition(".")
        layers.setdefault(name, {})[leaf] = tensor
    names = names_of("flux", [])
    assert names is not None
    return in_diffusers_names(layers, names)


def to_own(theirs: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return what a file with these tensors holds, by our keys."""
    save_file(theirs, path / "x.safetensors")
    layers = read_adapter(path / "x.safetensors")
    return {f"{name}.{leaf}": tensor for name, leaves in layers.items() for leaf, tensor in leaves.items()}


def small(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model 192 times narrower."""
    return {key: tuple(n // 192 if n >= 192 else n for n in shape) for key, shape in shapes.items()}


def test_a_whole_lora_gets_the_recorded_keys_and_shapes_in_the_other_naming_and_back(tmp_path: Path) -> None:
    ours, theirs = listed("lora_flux_from_aitoolkit"), listed("aitoolkit_flux_from_lora_flux")
    back = to_own({key: torch.zeros(shape) for key, shape in small(theirs).items()}, tmp_path)
    assert {key: tuple(value.shape) for key, value in back.items()} == small(ours)
    assert len(ours) == 912
    again, rest = to_theirs(back)
    assert rest == []
    assert again.keys() == theirs.keys()
    assert len(theirs) == 988


def test_shared_ranks_are_repeated_and_the_change_stays(tmp_path: Path) -> None:
    own = lora(QKV, 3 * WIDTH, WIDTH, 4, 2.0) | lora(LINEAR1, 7 * WIDTH, WIDTH, 3, 3.0, seed=1)
    theirs, rest = to_theirs(own)
    assert rest == []
    names = [f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    assert [tuple(theirs[f"{name}.lora_A.weight"].shape) for name in names] == [(4, WIDTH)] * 3
    parts = [theirs[f"{name}.lora_B.weight"] @ theirs[f"{name}.lora_A.weight"] for name in names]
    torch.testing.assert_close(torch.cat(parts), product(own, QKV))
    back = to_own(theirs, tmp_path)
    for name in (QKV, LINEAR1):
        torch.testing.assert_close(product(back, name), product(own, name))
    assert back[f"{QKV}.lora_down.weight"].shape[0] == float(back[f"{QKV}.alpha"]) == 12


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 3, 2)])
def test_ranks_of_parts_that_were_apart_are_kept(ranks: tuple[int, ...], tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    names = [f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    theirs = {}
    for name, rank in zip(names, ranks, strict=True):
        theirs[f"{name}.lora_A.weight"] = torch.randn(rank, WIDTH, generator=rng)
        theirs[f"{name}.lora_B.weight"] = torch.randn(WIDTH, rank, generator=rng)
    own = to_own(theirs, tmp_path)
    assert tuple(own[f"{QKV}.lora_up.weight"].shape) == (3 * WIDTH, sum(ranks))
    back, _ = to_theirs(own)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.items())


def test_an_untrained_lora_keeps_its_rank() -> None:
    own = lora(QKV, 3 * WIDTH, WIDTH, 6, 6.0)
    own[f"{QKV}.lora_up.weight"].zero_()
    theirs, _ = to_theirs(own)
    assert {tuple(t.shape) for key, t in theirs.items() if "lora_A" in key} == {(6, WIDTH)}


def test_a_part_that_was_never_trained_has_no_change(tmp_path: Path) -> None:
    name = "transformer.single_transformer_blocks.0.attn.to_k"
    theirs = {f"{name}.lora_A.weight": torch.ones(2, WIDTH), f"{name}.lora_B.weight": torch.ones(WIDTH, 2)}
    own = to_own(theirs, tmp_path)
    change = product(own, LINEAR1)
    assert change.shape == (7 * WIDTH, WIDTH)
    assert torch.equal(change.ne(0).any(1).nonzero().flatten(), torch.arange(WIDTH, 2 * WIDTH))
    back, _ = to_theirs(own)
    assert back.keys() == theirs.keys()


def test_text_encoders_come_along_and_what_is_not_known_is_named(tmp_path: Path) -> None:
    clip = "lora_te1_text_model_encoder_layers_3_self_attn_q_proj"
    t5 = "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0"
    own = lora(clip, WIDTH, WIDTH, 2, 1.0) | lora(t5, WIDTH, WIDTH, 2, 2.0)
    theirs, rest = to_theirs(own | {"lora_unet_strange.alpha": torch.tensor(1.0)})
    assert rest == ["lora_unet_strange"]
    assert "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight" in theirs
    assert "text_encoder_2.encoder.block.1.layer.1.DenseReluDense.wi_0.lora_B.weight" in theirs
    back = to_own(theirs, tmp_path)
    for name in (clip, t5):
        torch.testing.assert_close(product(back, name), product(own, name))


def test_the_scale_is_shared_by_both_halves() -> None:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    theirs, _ = to_theirs(lora(name, WIDTH, WIDTH, 16, 1.0))
    ours = lora(name, WIDTH, WIDTH, 16, 1.0)
    layer = "transformer.transformer_blocks.0.attn.to_out.0"
    assert torch.equal(theirs[f"{layer}.lora_A.weight"], ours[f"{name}.lora_down.weight"] / 4)
    assert torch.equal(theirs[f"{layer}.lora_B.weight"], ours[f"{name}.lora_up.weight"] / 4)


def test_the_last_modulation_has_its_halves_exchanged_both_ways(tmp_path: Path) -> None:
    name = "lora_unet_final_layer_adaLN_modulation_1"
    own = lora(name, 2 * WIDTH, WIDTH, 2, 2.0)
    theirs, _ = to_theirs(own)
    up = theirs["transformer.norm_out.linear.lora_B.weight"]
    assert torch.equal(up, own[f"{name}.lora_up.weight"].roll(WIDTH, 0))
    back = to_own(theirs, tmp_path)
    assert all(torch.equal(back[key], value) for key, value in own.items())


def test_sdxl_layers_are_known_by_the_names_of_diffusers() -> None:
    lines = gzip.decompress((HERE / "sdxl_names_of_diffusers.tsv.gz").read_bytes()).decode().splitlines()
    names = dict(line.split("\t") for line in lines)
    assert len(names) == 788
    for given in (names, names.values()):
        found, family = named(HERE, {name: {} for name in given})
        assert family == "sdxl"
        assert list(found) == list(names.values())
    of_sd: Layers = {name: {} for name in names if "down_blocks_1_attentions_0_proj" in name}
    assert named(HERE, of_sd) == (of_sd, "sd")


def test_a_dora_on_a_published_path_keeps_all_its_tensors(tmp_path: Path) -> None:
    dotted, own = "diffusion_model.double_blocks.0.img_attn.qkv", lora(QKV, 3 * WIDTH, WIDTH, 4, 2.0)
    renamed = {f"{dotted}.lora_A.weight": own[f"{QKV}.lora_down.weight"]}
    renamed |= {f"{dotted}.lora_B.weight": own[f"{QKV}.lora_up.weight"]}
    found = to_own(renamed | {f"{dotted}.dora_scale": torch.ones(3)}, tmp_path)
    assert float(found[f"{QKV}.alpha"]) == 4.0
    assert f"{QKV}.dora_scale" in found
