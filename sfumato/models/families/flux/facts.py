"""What is known of FLUX.1 without loading torch."""

from __future__ import annotations

from sfumato.models.families.flux.options import FluxOptions, FluxTextOptions
from sfumato.models.families.flux.rows import ROWS
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.interface.file_kinds import FileKind
from sfumato.models.interface.layers import Layers

_LAYER_KINDS = ("img_attn", "txt_attn", "img_mlp", "txt_mlp", "img_mod", "txt_mod", "single", "single_mod")

FACTS = FamilyFacts(
    name="flux",
    kinds=(
        FileKind(
            "flux",
            "a FLUX.1 transformer",
            ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"),
        ),
        FileKind("flux redux", "FLUX.1 Redux, which turns images into captions", ("^redux_up.",)),
        FileKind(
            "flux diffusers",
            "a FLUX.1 transformer in diffusers' format",
            ("^transformer_blocks.0.attn.add_q_proj.weight", "^single_transformer_blocks.0."),
        ),
    ),
    bases={"flux": None, "flux diffusers": None},
    versions=("flux",),
    layers=Layers(
        kinds={f"{kind}_dim": kind for kind in _LAYER_KINDS},
        listed={"in_dims": ("img_in", "time_in", "vector_in", "guidance_in", "txt_in")},
        blocks={"train_double_block_indices": "double", "train_single_block_indices": "single"},
        attention=("img_attn", "txt_attn"),
        are_fused=True,
        on_request={"train_t5xxl": 1},
        without_effect=("conv_dim", "conv_alpha"),  # there are no convolutions in it
    ),
    network_modules=(
        *("networks.lora_flux", "networks.oft_flux"),
        *("networks.lora_fa", "networks.loha", "networks.lokr"),
    ),
    mark="double_blocks",
    scripts=ROWS,
    choice="The model is FLUX.1.",
    own_options=(FluxOptions,),
    own_text_options=(FluxTextOptions,),
)
