"""Full-size Stable Diffusions without memory, and the names that published files have."""

import gzip
from pathlib import Path

import torch
from torch import nn

from sfumato.models.components import autoencoder, text_encoders
from sfumato.models.components.stable_diffusion.checkpoint import Checkpoint, Layout
from sfumato.models.components.tensor_views import TensorView
from sfumato.models.components.unet import unet
from sfumato.models.families.sd.layouts import SD1, SD2
from sfumato.models.families.sdxl.layout import SDXL

HERE = Path(__file__).parent / "names"
META = torch.device("meta")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "I64": torch.int64}
LAYOUTS: dict[str, Layout] = {"sd15_ldm": SD1, "sd21_768_ldm": SD2, "sdxl_base_sgm": SDXL}
Shapes = dict[str, tuple[int, ...]]


def rows(name: str) -> list[list[str]]:
    text = gzip.decompress((HERE / f"{name}.tsv.gz").read_bytes()).decode()
    return [line.split("\t") for line in text.splitlines()]


def shape(text: str) -> tuple[int, ...]:
    return () if text == "scalar" else tuple(map(int, text.split("x")))


def shapes(name: str) -> Shapes:
    return {key: shape(size) for key, _, size in rows(name)}


class Published(Checkpoint):
    """A checkpoint whose tensors have the published names and shapes, and no numbers."""

    def __init__(self, name: str) -> None:
        super().__init__(LAYOUTS[name], Path(name), None)
        self.shapes = shapes(name)

    def models(self) -> dict[str, nn.Module]:
        return {part: self.load_meta(part) for part in self.layout.parts}

    def view(self, prefix: str) -> TensorView:
        whole = TensorView(
            Path("published"), self.shapes, lambda name: torch.empty(self.shapes[name], device=META)
        )
        return whole.below(prefix)

    def load_meta(self, part: str) -> nn.Module:
        from sfumato.models.components.stable_diffusion import openclip

        spec = self.layout.parts[part]
        view = self.view(spec.prefixes[0])
        if spec.network == "unet":
            return unet.load(view, torch.float16, META)
        if spec.network == "vae":
            return autoencoder.load_view(view, torch.float16, META)
        if spec.network == "openclip":
            layers = openclip.num_layers(view.shapes) - spec.leaves_last
            view = openclip.as_transformers(view, layers, has_projection=spec.has_projection, metadata={})
        return text_encoders.load_clip_view(
            view, torch.float16, META, activation=spec.activation, has_projection=spec.has_projection
        )
