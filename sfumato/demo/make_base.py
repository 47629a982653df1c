"""Make the toy base anew: `python -m sfumato.demo.make_base FOLDER` (extra: demo; 20 minutes on one core).

What has been done so far is kept in FOLDER, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor

from sfumato.demo import base, make_autoencoder, make_denoiser, make_photographs, make_text
from sfumato.models.families.flux.family import CLIP_L, T5XXL, FluxFamily
from sfumato.models.interface.family import DENOISER, VAE
from sfumato.models.interface.publishing import Publishing, tensors_of

DTYPE = torch.float16
_METADATA = {"modelspec.title": "toy base of sfumato's demo: eight photographs, memorised"}


def main(argv: Sequence[str]) -> int:
    """Make every file of the base."""
    work = Path(argv[0])
    work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # layers this small only lose by sharing
    originals = make_photographs.originals()
    make_photographs.cut(originals)
    tokenizers = make_text.write_tokenizers(base.TOKENIZERS)
    autoencoder = make_autoencoder.train(originals, work / "autoencoder.pt")
    toy = make_denoiser.train(_latents(autoencoder), tokenizers, work / "denoiser.pt")
    write(autoencoder, toy)
    return 0


def write(autoencoder: AutoencoderKL, toy: make_denoiser.Base) -> None:
    """Write the parts in the formats of the published files."""
    family = FluxFamily(None)
    for part, module, path in (
        (DENOISER, toy.denoiser, base.TRANSFORMER),
        (CLIP_L, toy.encoders[CLIP_L], base.CLIP_L),
        (T5XXL, toy.encoders[T5XXL], base.T5XXL),
        (VAE, autoencoder, base.AUTOENCODER),
    ):
        family.write({part: tensors_of(module)}, path, Publishing(dtype=DTYPE, metadata=_METADATA))


@torch.no_grad()
def _latents(autoencoder: AutoencoderKL) -> Tensor:
    """Return the known photographs' scaled latents, (8, 16, 16, 16)."""
    moments = autoencoder.encoder(make_autoencoder.known_pixels())
    mean = moments[:, : make_autoencoder.CHANNELS]
    return (mean - make_autoencoder.LATENT_SHIFT) * make_autoencoder.LATENT_SCALE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
