"""New words have the tokens, sentences and, step by step, the vectors that sd-scripts gives them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sfumato.adapters.words.extended_embedding import extend, table_of
from sfumato.data.captions import captions, templates
from sfumato.data.captions.captions import CaptionSettings
from sfumato.diffusion.losses import l2
from sfumato.diffusion.objectives import ddpm_noisy
from sfumato.diffusion.schedules import ddpm_kept, signal_to_noise
from sfumato.diffusion.weighting import min_snr
from sfumato.models.components.tokenizers import Tokenizer, load_clip
from sfumato.models.components.unet import unet, unet_names
from sfumato.models.families.sd.family import SdFamily
from sfumato.models.families.sdxl.family import SdxlFamily
from sfumato.models.interface.conditioning import Conditioning, ImageSizes
from sfumato.models.interface.tokenizers import Word
from tests.golden.clip_models import clip_encoder
from tests.golden.derived import arrays, assert_recorded, cases, error, inputs, settings, weight
from tests.vocabularies import write_clip

NAME = "k_textual_inversion"
NUMBERS = arrays(NAME)


OFTEN = ("tr_sd_noclip", "tr_sdxl_clip")


def named(start: str) -> list[Any]:
    found = [case for case in cases(NAME) if case["id"].startswith(start)]
    is_slow = {case["id"]: start == "tr_" and case["id"] not in OFTEN for case in found}
    marks = {name: pytest.mark.slow if slow else () for name, slow in is_slow.items()}
    return [pytest.param(case, id=case["id"], marks=marks[case["id"]]) for case in found]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    folder = tmp_path_factory.mktemp("vocabularies")
    write_clip(folder / "clip")
    return {pad or "end": load_clip("clip", cache_dir=folder, pad_token=pad) for pad in (None, "!")}


@pytest.mark.parametrize("case", named("t0"))
def test_a_word_has_the_recorded_tokens(case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> None:
    word = Word(case["token"], case["vectors"])
    assert list(word.tokens) == case["names"]
    taught = {pad: tokenizer.with_words([word]) for pad, tokenizer in tokenizers.items()}
    for kind, encoders in case["families"].items():
        for place, recorded in enumerate(encoders):
            tokenizer = taught["!" if recorded["pad"] == 0 else "end"]
            assert tokenizer.size == recorded["vocab"]
            ids = NUMBERS[f"{case['id']}/{kind}/ids" + (str(place) if len(encoders) > 1 else "")]
            assert torch.equal(tokenizer.windows(case["captions"], recorded["shape"][1]), ids)
            if recorded["init_ids"]:
                assert tokenizer.ids([case["init_word"]]) == [recorded["init_ids"]]


@pytest.mark.parametrize("case", named("tmpl_"))
def test_sentences_are_the_recorded_ones(case: dict[str, Any]) -> None:
    make = templates.of_object if case["template"] == "object" else templates.of_style
    spelt = " ".join(Word(case["token"], case["vectors"]).tokens)
    assert hashlib.sha256("\n".join(make(spelt)).encode()).hexdigest() == case["hash"]
    sentences, rng = make(case["token"]), random.Random(case["seed"])
    drawn = [captions.process("x", CaptionSettings(templates=sentences), rng, epoch=1) for _ in case["drawn"]]
    assert drawn == [sentences[number] for number in case["drawn"]]
    assert rng.random() == case["next_random"]
    rng = random.Random(case["seed"])
    often = CaptionSettings(templates=sentences, caption_dropout_rate=0.5)
    dropped = [not captions.process("x", often, rng, epoch=1) for _ in case["dropped"]]
    assert dropped == case["dropped"]


SHAPES = {
    "sd": (unet.UnetShape(4, 4, 2, (32, 64, 128, 128), (1, 1, 1, 0), 1, 32, 0, is_linear=False), (8,) * 4),
    "sdxl": (unet.UnetShape(4, 4, 2, (32, 64, 128), (0, 2, 10), 10, 72, 1576, is_linear=True), None),
}
OPTIMIZERS: Mapping[str, Any] = {"AdamW": torch.optim.AdamW, "SGD": torch.optim.SGD}


class Steps:
    """The training steps of a case, taken by our parts."""

    def __init__(self, case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> None:
        models = settings(NAME)["models"]
        self.case, self.is_xl = case, case["model"] == "sdxl"
        self.family = SdxlFamily(None) if self.is_xl else SdFamily(None, clip_skip=case["clip_skip"])
        described = [models["sd"]["te"], *([models["sdxl"]["te2"]] if self.is_xl else [])]
        self.encoders = {
            part: clip_encoder({"weight_std": model["std"]}, model)
            for part, model in zip(self.family.text_outputs, described, strict=True)
        }
        self.denoiser = _denoiser(case["model"], models[case["model"]]["unet"]["weight_std"])
        word = Word(case["token"], case["vectors"])
        self.vectors: dict[str, Tensor] = {}
        for place, (part, encoder) in enumerate(self.encoders.items()):
            known = tokenizers["!" if place else "end"]
            self.family.tokenizers[part] = taught = known.with_words([word])
            start = self._start(place, table_of(encoder).weight, taught)
            vectors = extend(encoder, known.size, start).vectors.requires_grad_(True)
            self.vectors[self.family.word_keys[part]] = vectors
        # sd-scripts measures the gradients of all tokens, though it trains the new ones alone.
        self.tables = [table_of(encoder).weight.requires_grad_(True) for encoder in self.encoders.values()]
        kind = OPTIMIZERS[case["optimizer"]]
        self.optimizer = kind(self.vectors.values(), lr=case["lr"])

    def _start(self, place: int, table: Tensor, tokenizer: Tokenizer) -> Tensor:
        count = self.case["vectors"]
        if self.case["weights"]:
            return 0.1 * inputs(f"kti.{self.case['id']}.weights{place}", (count, table.shape[1]))
        [ids] = tokenizer.ids([self.case["init_word"]])
        return table[[ids[number % len(ids)] for number in range(count)]]

    def text(self, step: int) -> dict[str, Tensor]:
        return self.family.encode_text(self.encoders, self.family.tokenize(self.case["captions"][step]))

    def take(self, step: int) -> float:
        case = self.case
        latents, noise = (
            inputs(f"kti.{case['id']}.{name}{step}", case["shape"]) for name in ("latents", "noise")
        )
        timesteps = torch.tensor(case["timesteps"][step])
        kept = ddpm_kept()[timesteps]
        size = torch.tensor([[8 * side for side in case["shape"][-2:]]]).expand(len(timesteps), 2)
        told = Conditioning(self.text(step), sizes=ImageSizes(size, torch.zeros_like(size), size))
        noisy = ddpm_noisy(0.8 * latents, noise, kept)
        loss = l2(self.family.predict(self.denoiser, noisy, timesteps, told), noise).mean((1, 2, 3))
        if case["min_snr_gamma"]:
            loss = loss * min_snr(signal_to_noise(kept), case["min_snr_gamma"])
        loss.mean().backward()
        if case["max_grad_norm"]:
            torch.nn.utils.clip_grad_norm_([*self.vectors.values(), *self.tables], case["max_grad_norm"])
        self.optimizer.step()
        for tensor in (*self.vectors.values(), *self.tables):
            tensor.grad = None
        return loss.mean().item()


def _denoiser(kind: str, std: float) -> nn.Module:
    shape, heads = SHAPES[kind]
    model = unet.build(shape, heads).to_empty(device="cpu").requires_grad_(False).eval()
    state = model.state_dict()
    names = unet_names.published_names(state) if kind == "sdxl" else {name: name for name in state}
    model.load_state_dict({k: weight(names[k], v.shape, std) for k, v in state.items()})
    return model


@pytest.mark.whole_model
@pytest.mark.parametrize("case", named("tr_"))
def test_steps_leave_the_recorded_vectors(case: dict[str, Any], tokenizers: dict[str, Tokenizer]) -> None:
    steps = Steps(case, tokenizers)
    text = steps.text(0)
    joined = torch.cat([value for name, value in text.items() if name.startswith("hidden")], -1)
    assert_recorded(joined, NUMBERS, f"{case['id']}/cond0", 1e-5)
    if steps.is_xl:
        assert error(text["pool2"].detach(), NUMBERS[f"{case['id']}/pooled0"]) < 1e-5
    is_right = case.get("judge") == "right"
    stem, losses = (f"{case['id']}/right", case["right_loss"]) if is_right else (case["id"], case["loss"])
    for step, loss in enumerate(losses):
        assert steps.take(step) == pytest.approx(loss, rel=1e-5), step
        for key, vectors in steps.vectors.items():
            assert error(vectors.detach(), NUMBERS[f"{stem}/step{step + 1}/{key}"]) < 2e-5, (step, key)
