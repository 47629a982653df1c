"""The layers of tiny models, and writers of LoRA files in the naming of each program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sfumato.config.run.model.model import ModelConfig
from sfumato.config.run.run import Run
from sfumato.models.components.unet.unet_names import published_names_of_modules
from sfumato.models.families.flux.options import FluxOptions
from sfumato.models.interface.family import DENOISER, Family
from sfumato.models.registry.families import family_for
from tests import tiny

RANK, ALPHA = 2, 1.0
DOWN, UP = "lora_down.weight", "lora_up.weight"
TEXTS = {"te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2", "te3": "text_encoder_2"}
COMFY = {"te": "clip_l", "te1": "clip_l", "te2": "clip_g", "te3": "t5xxl"}
FLUX = {
    "double_blocks.{}.img_mod.lin": "transformer_blocks.{}.norm1.linear",
    "double_blocks.{}.img_attn.qkv": "transformer_blocks.{}.attn.to_q attn.to_k attn.to_v",
    "double_blocks.{}.img_attn.proj": "transformer_blocks.{}.attn.to_out.0",
    "double_blocks.{}.img_mlp.0": "transformer_blocks.{}.ff.net.0.proj",
    "double_blocks.{}.img_mlp.2": "transformer_blocks.{}.ff.net.2",
    "double_blocks.{}.txt_mod.lin": "transformer_blocks.{}.norm1_context.linear",
    "double_blocks.{}.txt_attn.qkv": "transformer_blocks.{}.attn.add_q_proj attn.add_k_proj attn.add_v_proj",
    "double_blocks.{}.txt_attn.proj": "transformer_blocks.{}.attn.to_add_out",
    "double_blocks.{}.txt_mlp.0": "transformer_blocks.{}.ff_context.net.0.proj",
    "double_blocks.{}.txt_mlp.2": "transformer_blocks.{}.ff_context.net.2",
    "single_blocks.{}.linear1": "single_transformer_blocks.{}.attn.to_q attn.to_k attn.to_v proj_mlp",
    "single_blocks.{}.linear2": "single_transformer_blocks.{}.proj_out",
    "single_blocks.{}.modulation.lin": "single_transformer_blocks.{}.norm.linear",
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    **{
        f"{ours}.{half}_layer": f"time_text_embed.{theirs}_embedder.linear_{number}"
        for ours, theirs in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance"))
        for number, half in enumerate(("in", "out"), 1)
    },
}
"""diffusers' names of FLUX.1's layers, written down apart from the program."""
XFLUX = {
    "img_attn.qkv": "qkv_lora1", "txt_attn.qkv": "qkv_lora2", "img_attn.proj": "proj_lora1",
    "txt_attn.proj": "proj_lora2", "linear2": "proj_lora",
}  # fmt: skip

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """One layer of a model with a LoRA.

    Attributes:
        own: our name, without prefix.
        published, diffusers: paths; for text encoders both are that of transformers 4.
        splits: rows of what is fused.
    """

    own: str
    published: str
    diffusers: tuple[str, ...]
    splits: tuple[int, ...]
    down: Tensor
    up: Tensor

    @property
    def owner(self) -> str:
        return self.own.partition("_")[0]

    @property
    def is_denoiser(self) -> bool:
        return self.owner == "unet"

    def parts(self) -> list[tuple[str, Tensor, Tensor]]:
        """Return diffusers' paths, each with its down and up."""
        if len(self.diffusers) == 1:
            return [(self.diffusers[0], self.down, self.up)]
        ups = self.up.split(self.splits)
        return [(name, self.down.clone(), up.clone()) for name, up in zip(self.diffusers, ups, strict=True)]


@dataclass(frozen=True)
class Model:
    """A tiny model on the disk.

    Attributes:
        arguments: what names its files for training, and for generation.
        paths: of the files to merge into, by their options.
    """

    family: str
    layers: tuple[Layer, ...]
    training: list[str]
    generation: list[str]
    paths: Mapping[str, Path]


def models(folder: Path) -> dict[str, Model]:
    """Write a tiny model of each family."""
    sd, sdxl = tiny.sd(folder / "sd"), tiny.sdxl(folder / "sdxl")
    flux = tiny.flux(folder / "flux", dtype=torch.float32)
    found = {
        name: Model(
            name,
            tuple(_layers(name, _family(name, whole.path))),
            whole.arguments,
            whole.arguments,
            {"sd_model": whole.path},
        )
        for name, whole in (("sd", sd), ("sdxl", sdxl))
    }
    options = FluxOptions(clip_l=str(flux.clip_l), t5xxl=str(flux.t5xxl), ae=str(flux.ae))
    paths = {"flux_model": flux.transformer, "clip_l": flux.clip_l, "t5xxl": flux.t5xxl}
    layers = tuple(_layers("flux", _family("flux", flux.transformer, options)))
    return found | {"flux": Model("flux", layers, flux.arguments, flux.generation_arguments, paths)}


def _family(name: str, path: Path, *options: object) -> Family:
    return family_for(Run("", name, [ModelConfig(pretrained_model_name_or_path=str(path)), *options]))


def _layers(name: str, family: Family) -> Iterable[Layer]:
    rng = torch.Generator().manual_seed(0)
    for part in (DENOISER, *family.text_outputs):
        model = family.load(part, torch.float32, torch.device("meta"))
        paths = {id(module): path for path, module in model.named_modules()}
        is_unet = part == DENOISER and name != "flux"
        published = published_names_of_modules(model, list(paths.values())) if is_unet else {}
        for target in family.adapter_targets(part, model):
            weight = target.module.get_parameter("weight")
            path = paths[id(target.module)]
            down = torch.randn(RANK, *weight.shape[1:], generator=rng)
            up = torch.randn(weight.shape[0], RANK, *[1] * (weight.dim() - 2), generator=rng)
            names = (published[path], (path,)) if is_unet else _paths(path, target.name)
            yield Layer(target.name, *names, target.splits, down / 8, up / 8)


def _paths(path: str, own: str) -> tuple[str, tuple[str, ...]]:
    """Return the published path and diffusers' of a layer of FLUX.1 or of a text encoder."""
    if not own.startswith("unet_"):
        is_t5 = path.startswith("encoder.block")
        full = path if is_t5 else f"text_model.{path.removeprefix('text_model.')}"
        return full, (full,)
    number = next((word for word in path.split(".") if word.isdigit()), "")
    is_block = path.partition(".")[0].endswith("blocks")
    first, *rest = FLUX[path.replace(f".{number}.", ".{}.", 1) if is_block else path].split()
    names = [first, *(".".join([*first.split(".")[:2], name]) for name in rest)]
    return path, tuple(name.format(number) for name in names)


def own(layers: Iterable[Layer], alpha: float = RANK) -> Tensors:
    """Write our own naming."""
    return {
        key: tensor
        for layer in layers
        for key, tensor in (
            (f"lora_{layer.own}.{DOWN}", layer.down),
            (f"lora_{layer.own}.{UP}", layer.up),
            (f"lora_{layer.own}.alpha", torch.tensor(alpha)),
        )
    }


def _flat(path: str) -> str:
    return path.replace(".", "_")


def _dotted(
    layers: Iterable[Layer], owner: str, down: str, up: str, *, published: bool = False, alpha: bool = False
) -> Tensors:
    """Write dotted paths, those of text encoders as diffusers' files have them."""
    found: Tensors = {}
    for layer in layers:
        base = owner if layer.is_denoiser else f"{TEXTS[layer.owner]}."
        for path, a, b in [(layer.published, layer.down, layer.up)] if published else layer.parts():
            found |= {f"{base}{path}.{down}": a, f"{base}{path}.{up}": b}
            found |= {f"{base}{path}.alpha": torch.tensor(ALPHA)} if alpha else {}
    return found


def _undotted(
    layers: Iterable[Layer], owner: str, texts: Mapping[str, str], *, published: bool = False
) -> Tensors:
    found: Tensors = {}
    for layer in layers:
        base = owner if layer.is_denoiser else f"lora_{texts.get(layer.owner, layer.owner)}_"
        for path, a, b in [(layer.published, layer.down, layer.up)] if published else layer.parts():
            name = base + _flat(path)
            found |= {f"{name}.{DOWN}": a, f"{name}.{UP}": b, f"{name}.alpha": torch.tensor(ALPHA)}
    return found


def comfy(layers: Iterable[Layer], owner: str = "diffusion_model.") -> Tensors:
    """Write the naming of ComfyUI's own files."""
    found: Tensors = {}
    for layer in layers:
        base = owner if layer.is_denoiser else f"text_encoders.{COMFY[layer.owner]}.transformer."
        found |= {
            f"{base}{layer.published}.lora_A.weight": layer.down,
            f"{base}{layer.published}.lora_B.weight": layer.up,
        }
    return found


def processors(layers: Iterable[Layer], owner: str = "unet.") -> Tensors:
    """Write the naming of diffusers' attention processors; it has LoRAs for attention alone."""
    found: Tensors = {}
    for layer in layers:
        path = layer.diffusers[0]
        if layer.is_denoiser:
            block, _, name = path.removesuffix(".0").rpartition(".")
            base = f"{owner}{block}.processor.{name}_lora"
        else:
            base = f"{TEXTS[layer.owner]}.{path}.lora_linear_layer"
        found |= {f"{base}.down.weight": layer.down, f"{base}.up.weight": layer.up}
    return found


def xflux(layers: Iterable[Layer], owner: str = "") -> Tensors:
    """Write the naming of x-flux."""
    found: Tensors = {}
    for layer in layers:
        block, name = ".".join(layer.published.split(".")[:2]), ".".join(layer.published.split(".")[2:])
        base = f"{owner}{block}.processor.{XFLUX[name]}"
        found |= {f"{base}.down.weight": layer.down, f"{base}.up.weight": layer.up}
    return found


def numbered(layers: Iterable[Layer]) -> Tensors:
    """Write published names, fused layers as `.0`, `.1` ..., under diffusers' owner."""
    found: Tensors = {}
    for layer in layers:
        for number, (_, a, b) in enumerate(layer.parts()):
            base = f"transformer.{layer.published}" + (f".{number}" if len(layer.diffusers) > 1 else "")
            found |= {f"{base}.{DOWN}": a, f"{base}.{UP}": b}
    return found


def is_attention(layer: Layer) -> bool:
    return any(word in layer.published for word in (".attn1.", ".attn2.", ".self_attn."))


@dataclass(frozen=True)
class Dialect:
    """One program's naming.

    Attributes:
        families: whose files have it.
        write: makes the file of some layers.
        alpha: that the file says or means.
        has: which layers it has.
        metadata: beside the tensors.
    """

    families: tuple[str, ...]
    write: Callable[[Iterable[Layer]], Tensors]
    alpha: float = RANK
    has: Callable[[Layer], bool] = lambda _: True
    metadata: dict[str, str] | None = None


ALL, UNETS = ("sd", "sdxl", "flux"), ("sd", "sdxl")
PEFT = "lora_A.weight", "lora_B.weight"
DIALECTS = {
    "ours": Dialect(ALL, own),
    "published, without dots": Dialect(
        ("sd",), lambda ls: _undotted(ls, "lora_unet_", {}, published=True), ALPHA
    ),
    "diffusers', without dots": Dialect(("sdxl",), lambda ls: _undotted(ls, "lora_unet_", {}), ALPHA),
    "peft unet": Dialect(UNETS, lambda ls: _dotted(ls, "unet.", *PEFT)),
    "peft transformer": Dialect(("flux",), lambda ls: _dotted(ls, "transformer.", *PEFT)),
    "peft with alpha": Dialect(("flux",), lambda ls: _dotted(ls, "transformer.", *PEFT, alpha=True), ALPHA),
    "peft with a name": Dialect(
        UNETS, lambda ls: _dotted(ls, "unet.", "lora_A.mine.weight", "lora_B.mine.weight")
    ),
    "peft with settings": Dialect(
        ("sdxl",),
        lambda ls: _dotted(ls, "unet.", *PEFT),
        ALPHA,
        metadata={
            "lora_adapter_metadata": json.dumps(
                {f"{part}.lora_alpha": ALPHA for part in ("unet", "text_encoder", "text_encoder_2")}
            )
        },
    ),
    "peft raw": Dialect(
        UNETS, lambda ls: _dotted(ls, "base_model.model.", *PEFT), has=lambda layer: layer.is_denoiser
    ),
    "fal": Dialect(("flux",), lambda ls: _dotted(ls, "base_model.model.", *PEFT, published=True)),
    "onetrainer legacy": Dialect(
        ("flux",), lambda ls: _undotted(ls, "lora_transformer_", {"te3": "te2"}), ALPHA
    ),
    "onetrainer original": Dialect(ALL, lambda ls: _dotted(ls, "", *PEFT, published=True, alpha=True), ALPHA),
    "onetrainer numbered": Dialect(("flux",), numbered, has=lambda layer: layer.is_denoiser),
    "comfyui": Dialect(ALL, comfy),
    "comfyui whole": Dialect(UNETS, lambda ls: comfy(ls, "model.diffusion_model.")),
    "lycoris": Dialect(("sd", "flux"), lambda ls: _undotted(ls, "lycoris_", {}), ALPHA),
    "processors": Dialect(UNETS, processors, has=is_attention),
    "processors, bare": Dialect(("sdxl",), lambda ls: processors(ls, ""), has=is_attention),
    "diffusers 2023": Dialect(UNETS, lambda ls: _dotted(ls, "unet.", "lora.down.weight", "lora.up.weight")),
    "x-flux": Dialect(("flux",), xflux, has=lambda layer: ".".join(layer.published.split(".")[2:]) in XFLUX),
    "mixed": Dialect(
        ALL,
        lambda ls: (
            _dotted([x for x in ls if x.is_denoiser], "unet.", *PEFT)
            | own(x for x in ls if not x.is_denoiser)
        ),
    ),
}
"""All namings that are read, by what writes them."""
