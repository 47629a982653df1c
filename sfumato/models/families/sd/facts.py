"""What is known of Stable Diffusion 1 and 2 without loading torch."""

from __future__ import annotations

from sfumato.models.families.sd.rows import ROWS
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.interface.file_kinds import FileKind
from sfumato.models.interface.layers import BlockList, Layers

FACTS = FamilyFacts(
    name="sd",
    kinds=(
        FileKind("sd2", "a Stable Diffusion 2 checkpoint", ("^cond_stage_model.model.",)),
        FileKind("sd1", "a Stable Diffusion 1 checkpoint", ("^cond_stage_model.transformer.",)),
        FileKind(
            "sd unet",
            "a Stable Diffusion UNet",
            ("^time_embedding.linear_1.", "^down_blocks."),
            without=("^add_embedding.linear_1.",),
        ),
        FileKind(
            "clip h",
            "the text encoder of Stable Diffusion 2",
            ("^text_model.embeddings.token_embedding.weight",),
            ("text_model.embeddings.token_embedding.weight", 1024),
        ),
    ),
    bases={"sd1": 1, "sd2": 2, "sd unet": 1},
    lies_in_parts=False,
    versions=("sd_",),
    layers=Layers(block_list=BlockList(down=12, middle=1, up=12), attention=("attn",)),
    network_modules=(
        *("networks.lora", "networks.lora_fa", "networks.dylora"),
        *("networks.oft", "networks.loha", "networks.lokr"),
    ),
    scripts=ROWS,
)
