"""What tells files of control networks apart: one form for each family is used here, others have a name."""

from __future__ import annotations

from sfumato.models.interface.file_kinds import FileKind

OPTION = "controlnet_model_name_or_path"
"""Which names the ControlNet that a run goes on from."""

CONTROLNET = "controlnet"
"""What `recognise` calls a ControlNet of Stable Diffusion 1, 2 or XL, in either naming."""
XLABS = "controlnet flux"
"""What it calls a ControlNet of FLUX.1 as XLabs and sd-scripts have it."""

_BASE = ("^model.diffusion_model.",)

CONTROL_KINDS = (
    FileKind("control lora", "a Control-LoRA, which is no network of its own", ("^lora_controlnet",)),
    FileKind("lllite 2", "a ControlNet-LLLite of version 2, for other models", ("^lllite_conditioning1.",)),
    FileKind("lllite 2", "a ControlNet-LLLite of version 2, for other models", ("^lllite_modules.",)),
    FileKind("lllite", "a ControlNet-LLLite", ("^lllite_unet_",)),
    FileKind(
        "controlnet union",
        "a union ControlNet, which has to be told what its control image shows",
        ("^controlnet_cond_embedding.", "^control_add_embedding."),
    ),
    FileKind("controlnet xs", "a ControlNet-XS", ("^control_addon.",)),
    FileKind("controlnet xs", "a ControlNet-XS", ("^ctrl_to_base_",)),
    FileKind("sparse control", "a SparseCtrl network, for videos", ("motion_modules.", "^controlnet_")),
    FileKind(CONTROLNET, "a ControlNet", ("^controlnet_cond_embedding.",)),
    FileKind(
        "controlnet difference",
        "a ControlNet as a difference from its base model",
        ("^control_model.", "^difference"),
    ),
    FileKind(CONTROLNET, "a ControlNet", ("^control_model.input_hint_block.",), without=_BASE),
    FileKind(CONTROLNET, "a ControlNet", ("^input_hint_block.", "^zero_convs."), without=_BASE),
    FileKind("controlnet flux union", "a union ControlNet for FLUX.1", ("^controlnet_mode_embedder.",)),
    FileKind(
        "controlnet flux diffusers",
        "a ControlNet for FLUX.1 that reads latents, as InstantX and diffusers have it",
        ("^controlnet_blocks.", "^controlnet_x_embedder."),
    ),
    FileKind("controlnet sd3", "a ControlNet for Stable Diffusion 3", ("^pos_embed_input.proj.",)),
    FileKind("controlnet mistoline", "MistoLine's ControlNet for FLUX.1", ("^input_cond_block.",)),
    FileKind(
        XLABS,
        "a ControlNet for FLUX.1",
        ("^controlnet_blocks.", "^input_hint_block.0.", "^pos_embed_input.", "^double_blocks."),
    ),
    FileKind("controlnet other", "a ControlNet of a form that is not known here", ("^controlnet_blocks.",)),
    FileKind("t2i adapter", "a T2I-Adapter", ("^body.0.block1.",)),
    FileKind("t2i adapter", "a T2I-Adapter", ("^body.0.in_conv.",)),
    FileKind("t2i adapter", "a T2I-Adapter", ("^adapter.body.",)),
    FileKind("style adapter", "a T2I style adapter", ("^style_embedding",)),
    FileKind("ip adapter", "an IP-Adapter", ("^image_proj.", "^ip_adapter.")),
)
"""In the order in which files are asked: some have the tensors of others, too."""
