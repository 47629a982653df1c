"""What is known of SDXL without loading torch."""

from __future__ import annotations

from sfumato.models.families.sdxl.rows import ROWS
from sfumato.models.interface.facts import FamilyFacts
from sfumato.models.interface.file_kinds import FileKind
from sfumato.models.interface.layers import BlockList, Layers

FACTS = FamilyFacts(
    name="sdxl",
    kinds=(
        FileKind("sdxl", "an SDXL checkpoint", ("^conditioner.embedders.1.model.",)),
        FileKind("sdxl refiner", "an SDXL refiner", ("^conditioner.embedders.0.model.",)),
        FileKind("sdxl unet", "an SDXL UNet", ("^add_embedding.linear_1.", "^down_blocks.")),
        FileKind(
            "clip g",
            "a CLIP-G text encoder",
            ("^text_model.embeddings.token_embedding.weight",),
            ("text_model.embeddings.token_embedding.weight", 1280),
        ),
    ),
    bases={"sdxl": None, "sdxl unet": None},
    lies_in_parts=False,
    versions=("sdxl",),
    layers=Layers(
        block_list=BlockList(down=9, middle=3, up=9, before=1, after=1),
        attention=("attn",),
        text_encoders=(0, 1),
    ),
    network_modules=(
        *("networks.lora", "networks.lora_fa", "networks.dylora"),
        *("networks.oft", "networks.loha", "networks.lokr"),
    ),
    mark="add_embedding",
    scripts=ROWS,
    choice="The model is SDXL.",
)
