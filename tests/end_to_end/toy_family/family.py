"""A denoiser of two layers, and latents that are small images."""

from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import nn
from torch.nn import functional

from sfumato.checkpoints.tensors import open_tensors
from sfumato.checkpoints.weight_file import WeightFile
from sfumato.diffusion.schedules import flow_sigmas
from sfumato.errors import UserError
from sfumato.models.interface.family import DENOISER, Prediction
from sfumato.models.interface.identity import ModelIdentity, SamplingDefaults
from sfumato.models.interface.latents import CacheFormat, LatentSpace
from sfumato.models.interface.published import Published
from sfumato.models.interface.publishing import Layout, write, written_bytes
from sfumato.models.interface.targets import AdapterTarget
from sfumato.models.interface.tokenizers import Tokenizers


def create(run):
    return ToyFamily(run.file(DENOISER, "pretrained_model_name_or_path"))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.toy_in, self.toy_out = nn.Linear(3, 8), nn.Linear(8, 3)

    def forward(self, noisy, timesteps):
        inner = self.toy_in(noisy.movedim(1, -1)) + timesteps.reshape(-1, 1, 1, 1) / 1000
        return self.toy_out(functional.silu(inner)).movedim(-1, 1)


class ToyFamily:
    latents = LatentSpace(channels=3, downscale=8, scale=1.0)
    prediction = Prediction.FLOW
    identity = ModelIdentity("toy_v1", "toy", "https://example.com/toy", (64, 64))
    sampling = SamplingDefaults(steps=2)
    text_outputs = MappingProxyType({})
    tokenizers = Tokenizers({})
    caches = CacheFormat("_toy.npz", "_toy_te.npz")
    layout = Layout.PART_FILES

    def __init__(self, file):
        self.file = file

    def check(self, parts):
        if self.file.path is None or not self.file.path.is_file():
            raise UserError(f"--{self.file.option} is {self.file.path}, which is no file; give a toy")

    def source(self, part):
        return self.file.path if part == DENOISER else None

    def load(self, part, dtype, device):
        if part != DENOISER:
            return nn.Linear(1, 1).to(device, dtype).requires_grad_(False)  # latents are made without it
        model = Toy().to(device, dtype).requires_grad_(False).eval()
        if device.type != "meta":
            with open_tensors(self.file.path) as file:
                model.load_state_dict({name: file.get(name) for name in file.keys()})  # noqa: SIM118 - a reader is no mapping
        return model

    def tokenize(self, captions):
        return {}

    def readers(self):
        return {}

    def encode_text(self, encoders, tokens):
        return {}

    def encode_image(self, vae, pixels, rng):
        return functional.avg_pool2d(pixels.float(), 8)

    def decode_image(self, vae, latents):
        return functional.interpolate(latents, scale_factor=8)

    def predict(self, denoiser, noisy, timesteps, conditioning, rng=None):
        dtype = denoiser.toy_in.weight.dtype
        return denoiser(noisy.to(dtype), timesteps.to(dtype)).to(noisy.dtype)

    def sampling_sigmas(self, num_steps, width, height):
        return flow_sigmas(num_steps)

    def blocks(self, part, model):
        return []

    def adapter_targets(self, part, model):
        for name in ("toy_in", "toy_out") if part == DENOISER else ():
            yield AdapterTarget(f"unet_{name}", getattr(model, name), part)

    def cache_extras(self):
        return {}

    def metadata(self):
        return {}

    @contextmanager
    def published(self, part):
        with open_tensors(self.file.path) as file:
            tensors = {name: file.lazy(name) for name in file.keys()}  # noqa: SIM118 - a reader is no mapping
            model = self.load(part, torch.float32, torch.device("meta"))
            yield Published({DENOISER: tensors}, {DENOISER: model}, file.metadata)

    def write(self, parts, path, how):
        write(self, parts, path, how)

    def written_bytes(self, parts, how):
        return written_bytes(self, parts, how)

    @contextmanager
    def files(self, parts, path, how):
        yield [WeightFile(path, parts[DENOISER], how.metadata, how.dtype)]

    def copies(self):
        return {}

    def write_settings(self, parts, folder, how):
        pass
