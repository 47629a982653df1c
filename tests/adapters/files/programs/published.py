"""Keys and shapes of adapter files as the programs of the world write them, without a number in them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from sfumato.models.components.unet.unet_names import diffusers_names
from tests import tiny

Shapes = dict[str, tuple[int, ...]]
RANK = 2


@dataclass(frozen=True)
class Layer:
    """One layer of a tiny model: its names in checkpoints and in diffusers, the shape of its weight."""

    published: str
    diffusers: str
    shape: tuple[int, ...]
    has_bias: bool = True

    @property
    def is_attention(self) -> bool:
        return ".attn" in self.diffusers

    @property
    def is_in_transformer(self) -> bool:
        return ".attentions." in self.diffusers

    @property
    def is_kernel(self) -> bool:
        return self.shape[2:] == (3, 3)


def unet(kind: str) -> list[Layer]:
    """Return the layers of a UNet with a real one's topology; depths of SDXL's transformers are 0, 2, 3."""
    if kind == "sd":
        shapes = dict(tiny.ldm_unet((32, 32, 64, 64), (1, 1, 1, 0), 64, is_linear=False))
    else:
        shapes = dict(tiny.ldm_unet((32, 64, 64), (0, 2, 3), 64, is_linear=True, vector=64))
    names = diffusers_names(shapes)
    return [
        Layer(
            name.removesuffix(".weight"),
            names[name].removesuffix(".weight"),
            shape,
            f"{name[:-6]}bias" in shapes,
        )
        for name, shape in shapes.items()
        if name.endswith(".weight")
    ]


def linear(kind: str) -> list[Layer]:
    return [layer for layer in unet(kind) if layer.is_in_transformer and len(layer.shape) > 1]


def inner(kind: str) -> list[Layer]:
    """Return the layers of a UNet's blocks."""
    in_block = re.compile(r"\.(attentions|resnets|downsamplers|upsamplers)\.")
    return [layer for layer in unet(kind) if in_block.search(layer.diffusers) and len(layer.shape) > 1]


def attention(kind: str) -> list[Layer]:
    return [layer for layer in linear(kind) if layer.is_attention and len(layer.shape) > 1]


def whole(kind: str) -> list[Layer]:
    return [layer for layer in unet(kind) if len(layer.shape) > 1]


def norms(kind: str) -> list[Layer]:
    return [layer for layer in unet(kind) if len(layer.shape) == 1 and layer.published != "out.0"]


_CLIP = [f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")] + ["mlp.fc1", "mlp.fc2"]
_T5 = [
    *(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
    *(f"layer.1.DenseReluDense.{name}" for name in ("wi_0", "wi_1", "wo")),
]


def clip(depth: int) -> list[Layer]:
    paths = [f"text_model.encoder.layers.{number}.{name}" for number in range(depth) for name in _CLIP]
    return [Layer(path, path, (64, 64)) for path in paths]


def t5() -> list[Layer]:
    paths = [f"encoder.block.{number}.{name}" for number in range(2) for name in _T5]
    return [Layer(path, path, (64, 64), has_bias=False) for path in paths]


_DOUBLE = ("img_attn.qkv", "img_attn.proj", "img_mlp.0", "img_mlp.2", "img_mod.lin")
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
}
_LAST = {"final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear"}


def flux(depth: int = 2, single: int = 2) -> list[Layer]:
    """Return the layers of FLUX.1's blocks under their published names."""
    double = [*_DOUBLE, *(name.replace("img", "txt") for name in _DOUBLE)]
    names = [f"double_blocks.{number}.{name}" for number in range(depth) for name in double]
    lasts = ("linear1", "linear2", "modulation.lin")
    names += [f"single_blocks.{number}.{name}" for number in range(single) for name in lasts]
    return [Layer(name, name, (64, 64)) for name in names]


def flux_outside(*, with_last: bool = True) -> list[Layer]:
    names = {**_OUTSIDE, **(_LAST if with_last else {})}
    return [Layer(published, theirs, (64, 64)) for published, theirs in names.items()]


def flux_diffusers() -> list[Layer]:
    """Return the layers of FLUX.1's blocks under diffusers' names, in which nothing is fused."""
    attention = [f"attn.{name}" for name in ("to_q", "to_k", "to_v")]
    added = [f"attn.{name}" for name in ("to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")]
    feed = [f"{name}.net.{place}" for name in ("ff", "ff_context") for place in ("0.proj", "2")]
    double = [*attention, *added, *feed, "norm1.linear", "norm1_context.linear"]
    single = [*attention, "proj_mlp", "proj_out", "norm.linear"]
    names = [f"transformer_blocks.{number}.{name}" for number in range(2) for name in double]
    names += [f"single_transformer_blocks.{number}.{name}" for number in range(2) for name in single]
    return [Layer(name, name, (64, 64)) for name in names]


Leaves = Callable[[Layer], Mapping[str, tuple[int, ...]]]


def of(
    layers: Iterable[Layer], leaves: Leaves, prefix: str, *, theirs: bool = False, flat: bool = True
) -> Shapes:
    """Return a file's keys and shapes: each layer's name behind a prefix, then its tensors."""
    found: Shapes = {}
    for layer in layers:
        path = layer.diffusers if theirs else layer.published
        name = path.replace(".", "_") if flat else path
        found |= {f"{prefix}{name}{leaf}": shape for leaf, shape in leaves(layer).items()}
    return found


def lora(layer: Layer) -> Shapes:
    out, columns, *kernel = layer.shape
    ones = [1] * len(kernel)
    return {
        ".lora_down.weight": (RANK, columns, *kernel),
        ".lora_up.weight": (out, RANK, *ones),
        ".alpha": (),
    }


def without_alpha(leaves: Leaves) -> Leaves:
    return lambda layer: {leaf: shape for leaf, shape in leaves(layer).items() if leaf != ".alpha"}


def named(down: str, up: str, leaves: Leaves = lora) -> Leaves:
    """Return leaves of plain LoRA under other names."""
    names = {".lora_down.weight": down, ".lora_up.weight": up}
    return lambda layer: {names.get(leaf, leaf): shape for leaf, shape in leaves(layer).items()}


def plus(leaves: Leaves, *others: str) -> Leaves:
    """Return leaves and, for each layer, further ones with a number for each output."""

    def more(layer: Layer) -> Shapes:
        each = (layer.shape[0], *[1] * (len(layer.shape) - 1))
        return {**leaves(layer), **dict.fromkeys(others, each)}

    return more


def tucker(layer: Layer) -> Shapes:
    extra: Shapes = {".lora_mid.weight": (RANK, RANK, 3, 3)} if layer.is_kernel else {}
    return {**lora(layer), **extra}


def flat_up(layer: Layer) -> Shapes:
    """Return what LyCORIS's DyLoRA writes, whose `up` is a matrix for convolutions, too."""
    return {**lora(layer), ".lora_up.weight": (layer.shape[0], RANK)}


def leaves_of(*names: str) -> Leaves:
    """Return leaves of which the names alone matter."""
    return lambda _: dict.fromkeys((f".{name}" for name in names), (RANK, RANK))


loha = leaves_of("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "alpha")
glora = leaves_of("a1.weight", "a2.weight", "b1.weight", "b2.weight", "alpha")
lokr = leaves_of("lokr_w1", "lokr_w2_a", "lokr_w2_b", "alpha")
ia3 = leaves_of("weight", "on_input")
rotated = leaves_of("oft_blocks", "alpha")
w_norm = leaves_of("w_norm", "b_norm")


def loha_tucker(layer: Layer) -> Shapes:
    return {**loha(layer), **({".hada_t1": (2, 2), ".hada_t2": (2, 2)} if layer.is_kernel else {})}


def lokr_tucker(layer: Layer) -> Shapes:
    return {**lokr(layer), **({".lokr_t2": (2, 2, 3, 3)} if layer.is_kernel else {})}


def full(layer: Layer) -> Shapes:
    return {".diff": layer.shape, **({".diff_b": layer.shape[:1]} if layer.has_bias else {})}


def some_whole(shapes: Shapes, num: int, *, name: str = "lokr_w2") -> Shapes:
    """Return a LoKr file in which so many layers have a factor whole instead of in two parts."""
    found, left = dict(shapes), num
    for key in shapes:
        if left and key.endswith(f".{name}_a"):
            layer = key.removesuffix(f".{name}_a")
            del found[key], found[f"{layer}.{name}_b"]
            found[f"{layer}.{name}"] = (2, 2)
            left -= 1
    return found


def xlabs(prefix: str, *, with_single: bool) -> Shapes:
    names = [
        f"double_blocks.{n}.processor.{kind}_lora{i}"
        for n in (0, 1)
        for kind in ("qkv", "proj")
        for i in (1, 2)
    ]
    if with_single:
        names += [f"single_blocks.{n}.processor.{kind}_lora" for n in (0, 1) for kind in ("qkv", "proj")]
    return {f"{prefix}{name}.{half}.weight": (2, 2) for name in names for half in ("down", "up")}


def processors(layers: Sequence[Layer], prefix: str) -> Shapes:
    """Return attention as diffusers' processors of 2023 name it."""
    found: Shapes = {}
    for layer in layers:
        stem, _, name = layer.diffusers.partition(".to_")
        path = f"{prefix}{stem}.processor.to_{name.removesuffix('.0')}_lora"
        found |= {f"{path}.down.weight": (2, 2), f"{path}.up.weight": (2, 2)}
    return found


def joined(*files: Shapes) -> Shapes:
    return dict(chain.from_iterable(file.items() for file in files))


def control() -> Shapes:
    """Return the keys of Black Forest Labs' control LoRAs."""
    halves = named(".lora_A.weight", ".lora_B.weight", without_alpha(lora))
    found = of([*flux(), *flux_outside()], plus(halves, ".lora_B.bias"), "", flat=False)
    found |= dict.fromkeys(_scales(), (2,))
    return found


def _scales() -> Iterator[str]:
    for number in (0, 1):
        for norm in ("key_norm", "query_norm"):
            yield f"single_blocks.{number}.norm.{norm}.scale"
            yield f"double_blocks.{number}.img_attn.norm.{norm}.scale"
            yield f"double_blocks.{number}.txt_attn.norm.{norm}.scale"
