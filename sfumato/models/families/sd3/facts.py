"""What is known of Stable Diffusion 3 and 3.5 without loading torch."""

from __future__ import annotations

from sfumato.models.families.sd3.options import Sd3CachingOptions, Sd3TextOptions
from sfumato.models.families.sd3.rows import ROWS
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.interface.file_kinds import FileKind
from sfumato.models.interface.layers import Layers

_LAYER_KINDS = ("context_attn", "context_mlp", "context_mod", "x_attn", "x_mlp", "x_mod")

FACTS = FamilyFacts(
    name="sd3",
    kinds=(
        FileKind("sd3", "a Stable Diffusion 3 checkpoint", ("^model.diffusion_model.joint_blocks.",)),
        FileKind("sd3 transformer", "a transformer of Stable Diffusion 3", ("^joint_blocks.0.",)),
        FileKind(
            "sd3 diffusers",
            "a transformer of Stable Diffusion 3 in diffusers' format",
            ("^transformer_blocks.0.attn.add_q_proj.weight", "^pos_embed.pos_embed"),
        ),
    ),
    bases={"sd3": None, "sd3 transformer": None, "sd3 diffusers": None},
    versions=("sd3",),
    layers=Layers(
        kinds={f"{kind}_dim": kind for kind in _LAYER_KINDS},
        listed={"emb_dims": ("context", "t", "x", "y", "final_mod", "final_linear")},
        blocks={"train_block_indices": "joint"},
        attention=("context_attn", "x_attn"),
        are_fused=True,
        text_encoders=(0, 1),
        on_request={"train_t5xxl": 2},
        without_effect=("conv_dim", "conv_alpha"),  # there are no 3x3 convolutions in it
    ),
    network_modules=(
        *("networks.lora_sd3", "networks.oft_flux"),
        *("networks.lora_fa", "networks.loha", "networks.lokr"),
    ),
    mark="joint_blocks",
    scripts=ROWS,
    choice="The model is Stable Diffusion 3 or 3.5.",
    own_options=(Sd3CachingOptions,),
    own_text_options=(Sd3TextOptions,),
)
