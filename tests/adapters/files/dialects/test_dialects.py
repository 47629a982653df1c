"""Every program's naming is read wholly: the same layers, the same changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sfumato.adapters.files.adapter_file import read_adapter
from sfumato.adapters.files.dialects.reading import read_content
from sfumato.errors import UserError
from tests.adapters.files.dialects import writers
from tests.adapters.files.dialects.writers import DIALECTS, DOWN, UP, Model


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return writers.models(tmp_path_factory.mktemp("models"))


def product(leaves: dict[str, Tensor]) -> Tensor:
    down, up = leaves[DOWN].flatten(1), leaves[UP].flatten(1)
    return up @ down * (float(leaves["alpha"]) / down.shape[0])


@pytest.mark.parametrize(
    ("name", "family"), [(name, family) for name, dialect in DIALECTS.items() for family in dialect.families]
)
def test_a_file_of_any_program_is_read_wholly(
    name: str, family: str, models: dict[str, Model], tmp_path: Path
) -> None:
    dialect = DIALECTS[name]
    some = [layer for layer in models[family].layers if dialect.has(layer)][::3]
    layers = {f"lora_{layer.own}": layer for layer in some}
    save_file(dialect.write(list(layers.values())), tmp_path / "x.safetensors", dialect.metadata)
    content = read_content(tmp_path / "x.safetensors")
    assert content.layers.keys() == layers.keys()
    assert content.family == family
    for key, leaves in content.layers.items():
        layer = layers[key]
        if leaves[DOWN].shape == layer.down.shape:
            assert leaves.keys() == {DOWN, UP, "alpha"}
            assert torch.equal(leaves[DOWN], layer.down)
            assert torch.equal(leaves[UP], layer.up)
            assert float(leaves["alpha"]) == dialect.alpha
        else:
            whole = layer.up.flatten(1) @ layer.down.flatten(1) * (dialect.alpha / writers.RANK)
            torch.testing.assert_close(product(leaves), whole, atol=1e-6, rtol=0)


NAMES = {
    "lora_unet_conv_in": "lora_unet_conv_in",
    "unet.conv_out": "lora_unet_conv_out",
    "unet.time_embedding.linear_1": "lora_unet_time_embedding_linear_1",
    "diffusion_model.out.2": "lora_unet_conv_out",
    "diffusion_model.input_blocks.1.0.in_layers.0": "lora_unet_down_blocks_0_resnets_0_norm1",
    "text_encoder.encoder.layers.0.mlp.fc1": "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "lora_te_text_model_encoder_layers_0_mlp_fc1",
}
XL_NAMES = {
    "unet.add_embedding.linear_2": "lora_unet_label_emb_0_2",
    "unet.conv_in": "lora_unet_input_blocks_0_0",
    "lora_unet_mid_block_resnets_1_time_emb_proj": "lora_unet_middle_block_2_emb_layers_1",
    "unet.up_blocks.0.attentions.0.norm": "lora_unet_output_blocks_0_1_norm",
    "lora_te_text_model_encoder_layers_0_mlp_fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "text_encoder_2.text_projection": "lora_te2_text_projection",
}
FLUX_NAMES = {
    "transformer.proj_out": "lora_unet_final_layer_linear",
    "transformer.x_embedder": "lora_unet_img_in",
    "diffusion_model.guidance_in.in_layer": "lora_unet_guidance_in_in_layer",
    "transformer.transformer_blocks.0.attn.norm_added_k": "lora_unet_double_blocks_0_txt_attn_norm_key_norm",
    "lora_te2_encoder_block_0_layer_0_SelfAttention_q": "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
    "lora_te_text_model_encoder_layers_0_mlp_fc1": "lora_te1_text_model_encoder_layers_0_mlp_fc1",
}
TELLING = {
    "unet.down_blocks.0.attentions.0.proj_in": NAMES,
    "unet.up_blocks.0.attentions.0.transformer_blocks.4.ff.net.2": XL_NAMES,
    "transformer.single_transformer_blocks.0.proj_out": FLUX_NAMES,
}
"""A layer that only one family has, with others that file may hold."""


@pytest.mark.parametrize("telling", TELLING)
def test_layers_outside_of_blocks_and_norms_have_their_names(telling: str, tmp_path: Path) -> None:
    names = TELLING[telling]
    for given, expected in names.items():  # some are two names for one layer
        save_file(
            {f"{name}.diff": torch.ones(2) for name in (given, telling)}
            | {f"{telling}.lora_A.weight": torch.ones(2, 2), f"{telling}.lora_B.weight": torch.ones(2, 2)},
            tmp_path / "x.safetensors",
        )
        assert expected in read_adapter(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("inputs", "expected"), [(768, "sd"), (1024, "sd"), (2048, "sdxl")])
@pytest.mark.parametrize("block", ["unet.down_blocks.1.attentions.0", "diffusion_model.input_blocks.4.1"])
def test_a_shallow_file_tells_its_family_by_its_widths(
    block: str, inputs: int, expected: str, tmp_path: Path
) -> None:
    path = f"{block}.transformer_blocks.0.attn2.to_k"
    save_file(
        {f"{path}.lora_A.weight": torch.ones(1, inputs), f"{path}.lora_B.weight": torch.ones(4, 1)},
        tmp_path / "x.safetensors",
    )
    assert read_content(tmp_path / "x.safetensors").family == expected


def test_what_cannot_be_fused_in_factors_is_handed_on_part_by_part(tmp_path: Path) -> None:
    base = "lycoris_transformer_blocks_0_attn_to"
    save_file(
        {f"{base}_{word}.lokr_{w}": torch.ones(2, 2) for word in "vq" for w in ("w1", "w2")},
        tmp_path / "x.safetensors",
    )
    (leaves,) = read_adapter(tmp_path / "x.safetensors").values()
    assert leaves.keys() == {f"part.{i}.{leaf}" for i in (0, 2) for leaf in ("lokr_w1", "lokr_w2", "alpha")}


def test_exchanged_halves_are_turned_in_factors_or_marked(tmp_path: Path) -> None:
    path, name = "transformer.norm_out.linear", "lora_unet_final_layer_adaLN_modulation_1"
    rows = torch.arange(4.0)[:, None]
    tensors = {
        "lora_A.weight": torch.ones(1, 3),
        "lora_B.weight": rows,
        "lora_B.bias": rows[:, 0].clone(),
        "lora_magnitude_vector": rows[:, 0].clone(),
    }
    save_file({f"{path}.{leaf}": tensor for leaf, tensor in tensors.items()}, tmp_path / "x.safetensors")
    leaves = read_adapter(tmp_path / "x.safetensors")[name]
    assert torch.equal(leaves[DOWN], torch.ones(1, 3))
    assert (
        leaves[UP][:, 0].tolist()
        == leaves["lora_up.bias"].tolist()
        == leaves["dora_scale"][:, 0].tolist()
        == [2, 3, 0, 1]
    )
    assert leaves["dora_scale"].shape == (4, 1)
    save_file({f"{path}.lokr_{w}": torch.ones(2, 2) for w in ("w1", "w2")}, tmp_path / "x.safetensors")
    assert "swap_halves" in read_adapter(tmp_path / "x.safetensors")[name]


@pytest.mark.parametrize(
    ("more", "alpha"), [({}, 8.0), ({"use_rslora": True}, 16.0), ({"alpha_pattern": {"to_q": 2}}, 2.0)]
)
def test_the_folder_that_peft_writes_tells_alpha(
    more: dict[str, object], alpha: float, tmp_path: Path
) -> None:
    path = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    halves = {f"{path}.lora_A.weight": torch.ones(4, 2), f"{path}.lora_B.weight": torch.ones(2, 4)}
    save_file(halves, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "lora_alpha": 8, **more}))
    for place in (tmp_path, tmp_path / "adapter_model.safetensors"):
        (leaves,) = read_adapter(place).values()
        assert float(leaves["alpha"]) == alpha


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('{"lora_alpha": "x", "r": 4}', "lora_alpha is 'x', which is no number"),
        ('{"alpha": [1], "r": 4}', r"alpha is \[1\], which is no number"),
        ('{"alpha": 8, "r": 0}', "r is 0, and a rank is 1 or more"),
        ('{"alpha": 8, "r": NaN}', "r is nan, which is no number"),
        ('{"alpha_pattern": {"(": 1}}', r"'\(' is no pattern of names"),
        ('{"alpha_pattern": [1]}', r"alpha_pattern is \[1\], no object of numbers"),
        ("[" * 5000, "its settings are no JSON"),
        ("[1]", "its settings are no JSON object"),
        ("\xff", "no JSON"),
    ],
)
def test_damaged_settings_are_one_line(settings: str, message: str, tmp_path: Path) -> None:
    path = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    halves = {f"{path}.lora_A.weight": torch.ones(4, 2), f"{path}.lora_B.weight": torch.ones(2, 4)}
    save_file(halves, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(settings)
    with pytest.raises(UserError, match=message):
        read_adapter(tmp_path)


def test_peft_scales_a_lokr_of_whole_factors_too(tmp_path: Path) -> None:
    path = "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{path}.lokr_{w}": torch.ones(2, 2) for w in ("w1", "w2")}, tmp_path / "adapter_model.safetensors"
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOKR", "alpha": 8, "r": 4}))
    (leaves,) = read_adapter(tmp_path).values()
    assert torch.equal(leaves["lokr_w1"], torch.full((2, 2), 2.0))
    assert torch.equal(leaves["lokr_w2"], torch.ones(2, 2))


def test_new_words_are_lifted_out_and_bookkeeping_is_dropped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    half = "lora_unet_down_blocks_0_attentions_0_proj_in.lora_{}.weight"
    tensors = {half.format("down"): torch.ones(1, 2), half.format("up"): torch.ones(2, 1)}
    more = {"bundle_emb.word.clip_l": torch.ones(2, 3), "_aux.step": torch.ones(1)}
    save_file(tensors | more, tmp_path / "x.safetensors")
    content = read_content(tmp_path / "x.safetensors")
    assert list(content.layers) == ["lora_unet_down_blocks_0_attentions_0_proj_in"]
    assert list(content.embeddings) == ["bundle_emb.word.clip_l"]
    assert caplog.text == ""
    assert read_adapter(tmp_path / "x.safetensors").keys() == content.layers.keys()
    assert "1 embedding of new words come with it, and are left out here" in caplog.text


def test_one_layer_under_two_names_is_refused(tmp_path: Path) -> None:
    names = "lora_unet_double_blocks_0_img_attn_qkv", "transformer.transformer_blocks.0.attn.to_k"
    save_file(
        {f"{name}.lora_{half}.weight": torch.ones(3, 3) for name in names for half in ("down", "up")}
        | {f"{names[1]}.lora_{half}.weight": torch.ones(3, 3) for half in "AB"},
        tmp_path / "x.safetensors",
    )
    with pytest.raises(
        UserError, match="holds one layer twice, as lora_unet_double_blocks_0_img_attn_qkv and as tr"
    ):
        read_adapter(tmp_path / "x.safetensors")


STRANGERS = {
    "unet:0:up": "cloneofsimo",
    "diffusion_model.blocks.0.cross_attn.k.lora_A.weight": "Wan",
    "transformer.double_blocks.0.img_attn_qkv.lora_A.weight": "HunyuanVideo",
    "transformer.transformer_blocks.0.img_mlp.net.2.lora_A.weight": "Qwen-Image",
    "transformer.transformer_blocks.30.attn.to_q.lora_A.weight": "Qwen-Image",
    "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight": "FLUX.2",
    "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight": "FLUX.2",
    "diffusion_model.layers.0.attention.to_q.lora_A.weight": "Z-Image",
    "lora_prior_unet_x.lora_down.weight": "Stable Cascade",
    "ip_adapter.1.to_k_ip.weight": "IP-Adapter",
    "lllite_unet_x.down.0.weight": "LLLite",
    "emb_params": "textual-inversion",
    "controlnet_cond_embedding.conv_in.weight": "ControlNet",
}


@pytest.mark.parametrize("key", STRANGERS)
def test_files_for_other_models_are_refused_by_their_names(key: str, tmp_path: Path) -> None:
    save_file({key: torch.zeros(1, 6144)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=STRANGERS[key]):
        read_adapter(tmp_path / "x.safetensors")
