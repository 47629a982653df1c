"""Every kind of file in the world is told from the others by its tensors."""

import gzip
import json
from pathlib import Path

import pytest

from sfumato.models.components.recognise import describe, recognise

FILES = json.loads(
    gzip.decompress((Path(__file__).parent / "data" / "tensors_of_files.json.gz").read_bytes())
)
KINDS = {
    "sd15_ldm": "sd1",
    "sd21_768_ldm": "sd2",
    "sdxl_base_sgm": "sdxl",
    "sdxl_refiner_sgm_unsupported": "sdxl refiner",
    "sd3_medium": "sd3",
    "sd3_medium_mmdit": "sd3 transformer",
    "sd15_unet_diffusers": "sd unet",
    "sdxl_unet_diffusers": "sdxl unet",
    "sd15_vae_diffusers": "vae diffusers",
    "sd3_vae": "vae",
    "flux_dev_bfl": "flux",
    "flux_schnell_diffusers": "flux diffusers",
    "flux_ae_bfl": "vae",
    "clip_l": "clip l",
    "clip_g": "clip g",
    "sd21_text_encoder_diffusers": "clip h",
    "t5xxl": "t5",
    "lora_sd15_lierla": "lora",
    "lora_sdxl_c3lier": "lora",
    "lora_flux": "lora",
    "lora_flux_split_qkv": "lora",
    "aitoolkit_flux_from_lora_flux": "lora",
    "oft_flux": "oft",
    "oft_sd15_conv": "oft",
    "dylora_sd15_unit1": "lora",
    "controlnet_sd15": "controlnet",
    "controlnet_sdxl": "controlnet",
    "controlnet_flux_head": "controlnet flux",
    "lllite_sdxl": "lllite",
    "textual_inversion_sd15": "embedding",
    "textual_inversion_sdxl": "embedding",
}


@pytest.mark.parametrize("name", FILES)
def test_a_published_file_is_recognised(name: str) -> None:
    kind = recognise({key: tuple(shape) for key, shape in FILES[name].items()})
    assert kind is not None
    assert kind.name == KINDS[name]


def test_an_unknown_file_is_described_by_its_first_tensor() -> None:
    assert recognise({"something.weight": (3,)}) is None
    assert "something.weight" in describe({"something.weight": (3,)})
    assert "no tensors" in describe({})
