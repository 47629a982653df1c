"""The script that makes the toy base: all of it, stopped after a step or two."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from sfumato.demo import base, make_autoencoder, make_base, make_denoiser, make_text, photographs
from sfumato.demo.photographs import KNOWN, SIZE_PX, SUBJECT
from sfumato.models.families.flux.family import CLIP_L, T5XXL, FluxFamily
from sfumato.models.interface.family import DENOISER, VAE


def test_script_makes_a_base_in_every_format_and_the_shipped_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = {photograph.name: Image.open(photograph.path).tobytes() for photograph in (*KNOWN, SUBJECT)}
    tokenizers = sorted(path.read_bytes() for path in base.TOKENIZERS.rglob("tokenizer.json"))
    folder = tmp_path / "base"
    for name in ("TRANSFORMER", "CLIP_L", "T5XXL", "AUTOENCODER", "TOKENIZERS"):
        monkeypatch.setattr(base, name, folder / getattr(base, name).name)
    monkeypatch.setattr(photographs, "FOLDER", tmp_path / "images")
    monkeypatch.setattr(make_autoencoder, "_NUM_STEPS", 2)
    monkeypatch.setattr(make_autoencoder, "_ENCODER_STEPS", 1)
    monkeypatch.setattr(make_denoiser, "_NUM_STEPS", 2)
    monkeypatch.setattr(make_denoiser, "_SAVE_EVERY", 1)

    threads = torch.get_num_threads()
    try:
        assert make_base.main([str(tmp_path / "work")]) == 0
    finally:
        torch.set_num_threads(threads)

    made = {photograph.name: Image.open(photograph.path).tobytes() for photograph in (*KNOWN, SUBJECT)}
    assert made == shipped
    assert sorted(path.read_bytes() for path in folder.rglob("tokenizer.json")) == tokenizers
    family = FluxFamily(base.TRANSFORMER, base.CLIP_L, base.T5XXL, base.AUTOENCODER)
    family.check([DENOISER, VAE, CLIP_L, T5XXL])
    assert (family.variant, family.latents.downscale, family.latents.channels) == ("dev", 4, 16)
    assert torch.load(tmp_path / "work" / "denoiser.pt", weights_only=True)["step"] == 2


def test_captions_fit_their_length_and_differ(tmp_path: Path) -> None:
    tokenizers = make_text.write_tokenizers(tmp_path)
    captions = [
        text for photograph in (*KNOWN, SUBJECT) for text in (photograph.prompt, *photograph.captions)
    ]
    tokens = tokenizers["t5xxl"](captions, 2 * base.TEXT_LENGTH)
    assert int(tokens.mask.sum(1).max()) <= base.TEXT_LENGTH
    assert len({tuple(row) for row in tokens.ids.tolist()}) == len(captions)
    assert len({tuple(row) for row in tokenizers["clip_l"](captions, 77).ids.tolist()}) == len(captions)


def test_normalised_latents_have_mean_0_and_variance_1_and_decode_as_before() -> None:
    torch.manual_seed(0)
    model = make_autoencoder.build()
    known = torch.rand(2, 3, SIZE_PX, SIZE_PX) * 2 - 1
    with torch.no_grad():
        channels = make_autoencoder.CHANNELS
        before = model.decoder(model.encoder(known)[:, :channels])
        make_autoencoder._normalise_latents(model, known)
        raw = model.encoder(known)[:, :channels]
        after = model.decoder(raw)
    scaled = (raw - make_autoencoder.LATENT_SHIFT) * make_autoencoder.LATENT_SCALE
    assert scaled.mean((0, 2, 3)).abs().max() < 1e-4
    assert (scaled.std((0, 2, 3)) - 1).abs().max() < 1e-4
    # The first convolution pads with zeros, which mean something else now: only borders change.
    assert (after - before)[..., 24:40, 24:40].abs().max() < 0.2 * before.abs().max()


def test_denoiser_starts_with_a_velocity_of_zero() -> None:
    denoiser = make_denoiser.Flux(make_denoiser.SHAPE)
    make_denoiser._start_at_zero(denoiser)
    with torch.no_grad():
        velocity = denoiser(
            img=torch.randn(1, 4, 64),
            img_ids=torch.zeros(1, 4, 3),
            txt=torch.randn(1, 2, make_text.WIDTH),
            txt_ids=torch.zeros(1, 2, 3),
            timesteps=torch.tensor([0.5]),
            y=torch.randn(1, make_text.WIDTH),
            guidance=torch.ones(1),
        )
    assert velocity.abs().max() == 0
