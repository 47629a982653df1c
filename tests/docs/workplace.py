"""A folder that holds what the documentation takes for granted: models and images, small."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from tests import tiny

ROOT = Path(__file__).parents[2]


def furnish(folder: Path) -> None:
    """Write tiny models under the published names, images, and the examples with small sizes."""
    model = tiny.flux(folder)
    model.t5xxl.rename(folder / "t5xxl_fp16.safetensors")
    tiny.sd(folder).path.rename(folder / "sd15.safetensors")
    tiny.sdxl(folder)
    _write_sd3(folder)
    tiny.sd(folder / "inpainting", inpaints=True).path.rename(folder / "sd15-inpainting.safetensors")
    for name, path in zip(("photo", "mask"), tiny.pictures(folder / "painted", 2), strict=True):
        path.rename(folder / f"{name}.png")
    _write_lora(folder / "cat-lora.safetensors", folder / "sd15.safetensors", "input_blocks.1.1")
    for name, block in (
        ("style", "input_blocks.4.1"),
        ("pose", "middle_block.1"),
        ("detail", "output_blocks.0.1"),
    ):
        _write_lora(folder / f"{name}.safetensors", folder / "sdxl.safetensors", block)
    tuned = {
        "flux1-dev": tiny.flux(folder / "tuned", seed=9).transformer,
        "sd15": tiny.sd(folder / "tuned", seed=9).path,
    }
    for name, path in tuned.items():
        path.rename(folder / f"{name}-tuned.safetensors")
    tiny.pictures(folder / "images" / "my-cat", 2)
    tiny.pictures(folder / "images" / "other-cats", 2, seed=1)
    for path in tiny.pictures(folder / "photos" / "1_mycat", 2):
        path.with_suffix(".txt").write_text("a photo of mycat", encoding="utf-8")
    tiny.pictures(folder / "masks", 2, seed=2, captions=None)
    named = [path.stem for path in sorted((folder / "images" / "my-cat").glob("*.png"))]
    (folder / "images" / "captions.json").write_text(json.dumps({n: {"caption": n} for n in named}))
    shutil.copytree(ROOT / "examples", folder / "examples")
    tiny.pictures(folder / "lines", 2, seed=3, captions=None)
    for name, page in (("cats", "regularisation"), ("control", "controlnet")):
        text = (ROOT / f"docs/{page}.md").read_text("utf-8")
        (described,) = re.findall(rf"```toml\n(# {name}.toml.*?)```", text, re.DOTALL)
        (folder / f"{name}.toml").write_text(described, encoding="utf-8")
    for example in (*folder.glob("*.toml"), *(folder / "examples").glob("*.toml")):
        smaller = re.sub(
            "resolution = .*", "resolution = 64\nmin_bucket_reso = 64", example.read_text("utf-8")
        )
        example.write_text(smaller.replace("num_repeats = 10", "num_repeats = 1"), encoding="utf-8")
    (folder / "prompts.txt").write_text("a cat --w 64 --h 64 --s 1 --d 1\n", encoding="utf-8")
    (folder / "outputs").mkdir()
    (squares,) = re.findall(
        r"```python\n(# squares.py.*?)```", (ROOT / "docs/datasets.md").read_text(), re.DOTALL
    )
    (folder / "squares.py").write_text(squares)


def _write_lora(path: Path, model: Path, block: str) -> None:
    """Write a LoRA of one layer in a block of a model's UNet."""
    layer = f"{block}.transformer_blocks.0.attn1.to_q"
    with safe_open(model, "pt") as file:
        rows, columns = file.get_slice(f"model.diffusion_model.{layer}.weight").get_shape()
    name = {"input_blocks.1.1": "down_blocks.0.attentions.0"}.get(block, block) + layer.removeprefix(block)
    key = f"lora_unet_{name}".replace(".", "_")
    down, up = torch.ones(2, columns) / 10, torch.ones(rows, 2) / 10
    save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, path)


def _write_sd3(folder: Path) -> None:
    """Write Stable Diffusion 3.5 with its text encoders beside it, and version 3 as one file."""
    parted = tiny.sd3(folder / "sd3", form="5-medium", in_one=False, hidden=64)
    whole = tiny.sd3(folder / "sd3-whole", hidden=64)
    tuned = tiny.sd3(folder / "sd3-tuned", form="5-medium", in_one=False, hidden=64, seed=9)
    names = {
        "sd3.5_medium": parted.path,
        "sd3.5_medium-tuned": tuned.path,
        "clip_g": parted.encoders["clip_g"],
        "t5xxl_fp8_e4m3fn": parted.encoders["t5xxl"],
        "sd3_medium_incl_clips_t5xxlfp16": whole.path,
    }
    for name, path in names.items():
        path.rename(folder / f"{name}.safetensors")
