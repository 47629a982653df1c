"""Block weights reach the layers of their blocks, in both namings."""

import pytest

from sfumato.adapters.sd_scripts.block_weights import block_of, weight_of


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("lora_te_text_model_encoder_layers_3_mlp_fc1", 0),
        ("lora_unet_down_blocks_0_attentions_0_proj_in", 2),
        ("lora_unet_down_blocks_2_downsamplers_0_conv", 10),
        ("lora_unet_down_blocks_3_resnets_1_conv2", 12),
        ("lora_unet_mid_block_attentions_0_proj_in", 13),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", 16),
        ("lora_unet_up_blocks_3_attentions_2_proj_out", 25),
        ("lora_unet_input_blocks_0_0", 1),
        ("lora_unet_input_blocks_8_1_proj_in", 9),
        ("lora_unet_middle_block_1_proj_in", 13),
        ("lora_unet_output_blocks_8_0_in_layers_2", 22),
        ("lora_unet_time_embed_0", 1),
        ("lora_unet_out_2", 23),
        ("lora_unet_double_blocks_0_img_attn_qkv", None),
    ],
)
def test_a_layer_lies_in_its_block(layer: str, block: int | None) -> None:
    if block is not None and layer.endswith("_0_0"):
        layer += "_conv"
    assert block_of(layer) == block


@pytest.mark.parametrize(
    ("length", "place"), [(12, 2), (17, 4), (20, 6), (26, 6)], ids=lambda value: str(value)
)
def test_each_length_of_list_has_its_places(length: int, place: int) -> None:
    weights = [0.0] * length
    weights[place] = 0.25
    assert weight_of("lora_unet_input_blocks_5_1_proj_in", weights) == 0.25
    assert weight_of("lora_unet_input_blocks_7_1_proj_in", weights) == 0.0


def test_blocks_that_a_list_leaves_out_count_fully() -> None:
    assert weight_of("lora_unet_input_blocks_3_0_op", [0.0] * 12) == 1.0
    assert weight_of("lora_unet_double_blocks_0_img_attn_qkv", [0.0] * 26) == 1.0
    assert weight_of("lora_unet_input_blocks_3_0_op", ()) == 1.0
