"""Which tensors of an adapter file other programs load, told by their names alone.

Programs skip what they do not know, some with a line in a log, some without a word. The rules are those of
ComfyUI, diffusers 0.42 and sd-scripts, found by loading files with them.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sfumato.adapters.layers import kinds, lora

_PEFT = r"lora_[AB](\.default)?\.weight"
_MORE = r"dora_scale|[ab][12]\.weight|diff|diff_b|w_norm|b_norm|oft_blocks|oft_diag|rescale"
_UNET = r"(down|up|mid|input|output|middle)_blocks?_|conv_(in|out)|time_embed|label_emb|add_embedding|out_"
_TRANSFORMER = r"(single_|double_)blocks_|(img|txt|time|vector|guidance)_in|final_layer_"
_TEXT = r"lora_te\d?_"
_THEIRS = r"(transformer|unet|text_encoder(_2)?)\."
_DOTTED_OWNERS = ("transformer.", "unet.", "text_encoder", "diffusion_model.")
_WORDS = {mark.partition("_")[0] for kind in kinds.in_files() for mark in kind.files.marks}
_DOTTED = re.compile(rf"\.(?:alpha|dora|diff|{'|'.join(sorted(_WORDS))})")
"""Where the name of a tensor begins behind a layer's dotted path."""


def _tensors(program: str, prefix: str = lora.PREFIX) -> str:
    """Return a pattern of the tensors that a program loads, of our kinds with that prefix."""
    own = [kind.files for kind in kinds.in_files() if kind.prefix == prefix]
    return "|".join(["alpha", *(form.tensors for form in own if program in form.programs)])


@dataclass(frozen=True)
class Consumer:
    """One program.

    Attributes:
        loads: patterns of whole keys, layer and tensor; a key is loaded if one fits.
        drops: patterns of layers that it leaves out all the same.
    """

    name: str
    loads: tuple[str, ...]
    drops: tuple[str, ...] = ()

    def loaded(self, keys: Sequence[str]) -> list[str]:
        """Return the keys that the program makes use of; an alpha is of use beside what it scales."""
        fitting = {
            key
            for key in keys
            if any(re.match(pattern, key) for pattern in self.loads)
            and not any(re.match(pattern, key) for pattern in self.drops)
        }
        layers = by_layer(key for key in keys if key in fitting).values()
        return [key for own in layers if not all(key.endswith(".alpha") for key in own) for key in own]


CONSUMERS: Sequence[Consumer] = (
    Consumer(
        "ComfyUI",
        (
            rf"(lora_unet_|lora_transformer_|lycoris_|{_TEXT})\w+\.({_tensors('ComfyUI')}|{_MORE})$",
            rf"(diffusion_model|transformer|unet|text_encoders)\..+\.({_tensors('ComfyUI')}|{_PEFT}|{_MORE})$",
        ),
    ),
    Consumer(
        "diffusers",
        (
            rf"lora_unet_({_UNET}|{_TRANSFORMER}).*\.({_tensors('diffusers')}|dora_scale)$",
            rf"{_TEXT}text_model_.*\.({_tensors('diffusers')}|dora_scale)$",
            rf"{_THEIRS}.+\.({_tensors('diffusers')}|{_PEFT})$",
        ),
        (r"lora_te3_", r"text_encoder_2\.encoder\."),
    ),
    Consumer(
        "sd-scripts",
        (
            rf"(lora_unet_|{_TEXT})\w+\.({_tensors('sd-scripts')}|lora_[AB]\.\d+)$",
            *(
                rf"{prefix}unet_\w+\.({_tensors('sd-scripts', prefix)})$"
                for prefix in kinds.prefixes()
                if prefix != lora.PREFIX
            ),
        ),
    ),
)
"""Programs that load adapter files. sd-scripts needs LyCORIS for LoHa and LoKr."""


def by_layer(keys: Iterable[str]) -> dict[str, list[str]]:
    """Return the keys of each layer; layers of diffusers' naming have dots in their names."""
    layers: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        name = _DOTTED.split(key)[0] if key.startswith(_DOTTED_OWNERS) else key.partition(".")[0]
        layers[name].append(key)
    return layers


def describe(keys: Sequence[str]) -> str:
    """Return how many of a file's tensors each program loads: `ComfyUI 912 of 912, diffusers ...`."""
    counts = [f"{consumer.name} {len(consumer.loaded(keys))}" for consumer in CONSUMERS]
    return f"of {len(keys)} tensors load: {', '.join(counts)}"
