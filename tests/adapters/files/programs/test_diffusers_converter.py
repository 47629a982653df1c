"""diffusers' own conversion refuses the files that we say it does not know, and takes the others whole."""

from __future__ import annotations

import pytest
import torch

from sfumato.adapters.files.programs import diffusers
from tests.adapters.files.programs.test_programs import FILES

pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and peft

KINDS = [name for name in FILES if name.startswith("sd_lyc_")]
OTHERS = [f"sd_{name}" for name in ("lora", "loha_tucker", "lokr", "lora_dot", "oldproc", "peft", "hyper")]


@pytest.mark.parametrize("name", [*KINDS, *OTHERS])
def test_the_converter_agrees(name: str) -> None:
    from diffusers.loaders.lora_pipeline import StableDiffusionLoraLoaderMixin

    shapes = FILES[name]()
    verdict = diffusers.judge(shapes)
    tensors = {key: torch.zeros(shape) for key, shape in shapes.items()}
    if verdict.refusal.startswith("it does not know"):
        with pytest.raises(ValueError, match="not been correctly renamed"):
            StableDiffusionLoraLoaderMixin.lora_state_dict(tensors)
        return
    found, _ = StableDiffusionLoraLoaderMixin.lora_state_dict(tensors)
    sizes_differ = {key for key in shapes if not key.endswith(".dora_scale")}  # refused after the conversion
    taken = verdict.loaded or sizes_differ
    assert len(found) == sum(not key.endswith(".alpha") for key in taken)
