"""LoRAs in our naming and in that of diffusers: the same changes, and the published keys."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sfumato.adapters.files import interchange
from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.layers.lora import Lora
from sfumato.adapters.network.loading import network_from_file
from sfumato.adapters.network.network import AdapterNetwork
from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.interface.family import DENOISER
from sfumato.models.registry.families import family_for
from sfumato.models.registry.other_names import own_names
from tests import tiny

HERE = Path(__file__).parent / "interchange"
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


def test_a_whole_lora_gets_the_recorded_keys_and_shapes_in_the_other_naming_and_back() -> None:
    ours, theirs = listed("lora_flux_from_aitoolkit"), listed("aitoolkit_flux_from_lora_flux")
    found = {layer for entry in interchange.exchanged(ours) for layer in entry.theirs}
    prefixes = {key.rpartition(".lora_")[0] for key in theirs}
    assert len(theirs) == 988
    assert prefixes <= found
    back, rest = interchange.to_own({key: torch.zeros(shape) for key, shape in small(theirs).items()})
    assert rest == []
    assert {key: tuple(value.shape) for key, value in back.items()} == small(ours)
    assert len(ours) == 912


def small(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model 192 times narrower."""
    return {key: tuple(n // 192 if n >= 192 else n for n in shape) for key, shape in shapes.items()}


def test_shared_ranks_are_repeated_and_the_change_stays() -> None:
    own = lora(QKV, 3 * WIDTH, WIDTH, 4, 2.0) | lora(LINEAR1, 7 * WIDTH, WIDTH, 3, 3.0, seed=1)
    theirs, rest = interchange.to_theirs(own)
    assert rest == []
    names = [f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    assert [tuple(theirs[f"{name}.lora_A.weight"].shape) for name in names] == [(4, WIDTH)] * 3
    parts = [theirs[f"{name}.lora_B.weight"] @ theirs[f"{name}.lora_A.weight"] for name in names]
    torch.testing.assert_close(torch.cat(parts), product(own, QKV))
    back, _ = interchange.to_own(theirs)
    for name in (QKV, LINEAR1):
        torch.testing.assert_close(product(back, name), product(own, name))
    assert back[f"{QKV}.lora_down.weight"].shape[0] == float(back[f"{QKV}.alpha"]) == 12


@pytest.mark.parametrize("ranks", [(4, 4, 4), (1, 3, 2)])
def test_ranks_of_parts_that_were_apart_are_kept(ranks: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    names = [f"transformer.transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")]
    theirs = {}
    for name, rank in zip(names, ranks, strict=True):
        theirs[f"{name}.lora_A.weight"] = torch.randn(rank, WIDTH, generator=rng)
        theirs[f"{name}.lora_B.weight"] = torch.randn(WIDTH, rank, generator=rng)
    own, rest = interchange.to_own(theirs)
    assert rest == []
    assert tuple(own[f"{QKV}.lora_up.weight"].shape) == (3 * WIDTH, sum(ranks))
    back, _ = interchange.to_theirs(own)
    assert back.keys() == theirs.keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.items())


def test_an_untrained_lora_keeps_its_rank() -> None:
    own = lora(QKV, 3 * WIDTH, WIDTH, 6, 6.0)
    own[f"{QKV}.lora_up.weight"].zero_()
    theirs, _ = interchange.to_theirs(own)
    assert {tuple(t.shape) for key, t in theirs.items() if "lora_A" in key} == {(6, WIDTH)}


def test_a_part_that_was_never_trained_has_no_change() -> None:
    name = "transformer.single_transformer_blocks.0.attn.to_k"
    theirs = {f"{name}.lora_A.weight": torch.ones(2, WIDTH), f"{name}.lora_B.weight": torch.ones(WIDTH, 2)}
    own, _ = interchange.to_own(theirs)
    change = product(own, LINEAR1)
    assert change.shape == (7 * WIDTH, WIDTH)
    assert torch.equal(change.ne(0).any(1).nonzero().flatten(), torch.arange(WIDTH, 2 * WIDTH))
    back, _ = interchange.to_theirs(own)
    assert back.keys() == theirs.keys()


def test_text_encoders_come_along_and_what_is_not_known_is_named() -> None:
    clip = "lora_te1_text_model_encoder_layers_3_self_attn_q_proj"
    t5 = "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0"
    own = lora(clip, WIDTH, WIDTH, 2, 1.0) | lora(t5, WIDTH, WIDTH, 2, 2.0)
    theirs, rest = interchange.to_theirs(own | {"lora_unet_strange.alpha": torch.tensor(1.0)})
    assert rest == ["lora_unet_strange.alpha"]
    assert "text_encoder.text_model.encoder.layers.3.self_attn.q_proj.lora_A.weight" in theirs
    assert "text_encoder_2.encoder.block.1.layer.1.DenseReluDense.wi_0.lora_B.weight" in theirs
    back, rest = interchange.to_own(theirs | {"transformer.strange.lora_A.weight": torch.ones(1)})
    assert rest == ["transformer.strange.lora_A.weight"]
    for name in (clip, t5):
        torch.testing.assert_close(product(back, name), product(own, name))


def test_the_scale_is_shared_by_both_halves() -> None:
    name = "lora_unet_double_blocks_0_img_attn_proj"
    theirs, _ = interchange.to_theirs(lora(name, WIDTH, WIDTH, 16, 1.0))
    ours = lora(name, WIDTH, WIDTH, 16, 1.0)
    layer = "transformer.transformer_blocks.0.attn.to_out.0"
    assert torch.equal(theirs[f"{layer}.lora_A.weight"], ours[f"{name}.lora_down.weight"] / 4)
    assert torch.equal(theirs[f"{layer}.lora_B.weight"], ours[f"{name}.lora_up.weight"] / 4)


def test_sdxl_layers_are_known_by_the_names_of_diffusers() -> None:
    lines = gzip.decompress((HERE / "sdxl_names_of_diffusers.tsv.gz").read_bytes()).decode().splitlines()
    names = dict(line.removeprefix("lora_").split("\tlora_") for line in lines)
    assert len(names) == 788
    assert own_names(names) == names
    of_sd = {name for name in names if "transformer_blocks" not in name or "transformer_blocks_0" in name}
    assert own_names(of_sd) == {}
    assert own_names(names.values()) == {}


def test_an_sdxl_lora_with_the_names_of_diffusers_acts_as_with_its_own(tmp_path: Path) -> None:
    model = tiny.sdxl(tmp_path / "m").path
    family = family_for(Run("", "sdxl", [ModelConfig(pretrained_model_name_or_path=str(model))]))
    unet = family.load(DENOISER, torch.float32, torch.device("cpu"))
    paths = {id(module): path.replace(".", "_") for path, module in unet.named_modules()}
    targets = list(family.adapter_targets(DENOISER, unet))
    own, theirs = AdapterNetwork([Lora(target, 2, 1.0) for target in targets]), tmp_path / "x.safetensors"
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    names = {layer.name: f"lora_unet_{paths[id(layer.target.module)]}" for layer in own.layers}
    state = own.state_dict()
    save_file(
        {f"{names[key.partition('.')[0]]}.{key.partition('.')[2]}": state[key] for key in state}, theirs
    )
    found = network_from_file(theirs, targets).state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


def test_dotted_paths_of_published_checkpoints_are_read_too(tmp_path: Path) -> None:
    own, path = lora(QKV, 3 * WIDTH, WIDTH, 4, 2.0), tmp_path / "x.safetensors"
    dotted = "diffusion_model.double_blocks.0.img_attn.qkv"
    renamed = {f"{dotted}.lora_A.weight": own[f"{QKV}.lora_down.weight"]}
    renamed |= {f"{dotted}.lora_B.weight": own[f"{QKV}.lora_up.weight"]}
    save_file(renamed | {f"{dotted}.alpha": own[f"{QKV}.alpha"]}, path)
    (name, layer), *_ = read_adapter(path).items()
    assert name == QKV
    assert all(torch.equal(layer[key.removeprefix(f"{QKV}.")], value) for key, value in own.items())
    save_file(renamed | {f"{dotted}.dora_scale": torch.ones(3)}, path)
    assert float(read_adapter(path)[QKV]["alpha"]) == 4.0
    assert "dora_scale" in read_adapter(path)[QKV]


def test_names_of_diffusers_may_be_written_without_dots() -> None:
    clip = "lora_te1_text_model_encoder_layers_3_self_attn_q_proj"
    t5 = "lora_te3_encoder_block_1_layer_1_DenseReluDense_wi_0"
    own = lora(QKV, 3 * WIDTH, WIDTH, 4, 2.0) | lora(LINEAR1, 7 * WIDTH, WIDTH, 3, 3.0, seed=1)
    theirs, _ = interchange.to_theirs(own | lora(clip, WIDTH, WIDTH, 2, 1.0) | lora(t5, WIDTH, WIDTH, 2, 2.0))
    flat = {}
    for key, tensor in theirs.items():
        name, _, half = key.removesuffix(".weight").rpartition(".lora_")
        owner, _, path = name.partition(".")
        short = {"transformer": "transformer", "text_encoder": "te1", "text_encoder_2": "te2"}[owner]
        path = path.replace(".", "_")
        flat[f"lora_{short}_{path}.lora_{'down' if half == 'A' else 'up'}.weight"] = tensor
    assert interchange.is_foreign(flat)
    back, rest = interchange.to_own(flat)
    assert rest == []
    for name in (QKV, LINEAR1, clip, t5):
        torch.testing.assert_close(product(back, name), product(interchange.to_own(theirs)[0], name))
