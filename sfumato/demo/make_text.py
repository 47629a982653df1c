"""Make the toy base's tokenizers and its untrained text encoders, in the formats of the published ones."""

from __future__ import annotations

import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from sfumato.demo.photographs import KNOWN, SUBJECT
from sfumato.models.components.tokenizers import Tokenizer
from sfumato.models.families.flux import text
from sfumato.models.interface.tokenizers import Tokenizers

WIDTH = 64
"""Of both encoders' outputs."""


def write_tokenizers(folder: Path) -> Tokenizers[Tokenizer]:
    """Write tokenizers that know the captions' words, and any other text by its letters; return them."""
    words = sorted({word for caption in _captions() for word in caption.split()})
    _clip(words).save_pretrained(folder / "openai_clip-vit-large-patch14")
    _t5(words).save_pretrained(folder / "google_t5-v1_1-xxl")
    return text.tokenizers(None, folder)


def build_encoders(tokenizers: Tokenizers[Tokenizer]) -> nn.ModuleDict:
    """Return untrained encoders that fit the tokenizers."""
    clip_size, t5_size = len(tokenizers[text.CLIP].vocabulary), len(tokenizers[text.T5].vocabulary)
    clip = CLIPTextConfig(
        vocab_size=clip_size,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=1,
        projection_dim=WIDTH,
        bos_token_id=clip_size - 2,
        eos_token_id=clip_size - 1,
    )
    t5 = T5Config(
        vocab_size=t5_size,
        d_model=WIDTH,
        d_kv=WIDTH // 4,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    return nn.ModuleDict({text.CLIP: CLIPTextModel(clip), text.T5: T5EncoderModel(t5)})


def encode(encoders: nn.ModuleDict, tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what the denoiser reads of captions, the padding hidden; gradients flow."""
    return text.encode(dict(encoders.items()), tokens, apply_mask=True)


def _captions() -> Iterable[str]:
    for photograph in (*KNOWN, SUBJECT):
        yield from (photograph.prompt, *photograph.captions)


def _clip(words: Iterable[str]) -> CLIPTokenizer:
    """Return a byte-level tokenizer; merges join each word's letters from the left."""
    alphabet = sorted(ByteLevel.alphabet())
    pieces = dict.fromkeys([*alphabet, *(letter + "</w>" for letter in alphabet)])
    merges = {
        (word[:end], word[end] + ("</w>" if end == len(word) - 1 else "")): None
        for word in words
        for end in range(1, len(word))
    }
    names = [*pieces, *dict.fromkeys("".join(pair) for pair in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {name: number for number, name in enumerate(names)}
    pairs: Any = list(merges)
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=77)


def _t5(words: Iterable[str]) -> T5Tokenizer:
    """Return a unigram tokenizer in which a known word is one piece."""
    letters = [letter for letter in string.printable if not letter.isspace()]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -4.0) for letter in letters] + [(f"▁{word}", -1.0) for word in words]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


@torch.no_grad()
def shrink_embeddings(encoders: nn.ModuleDict) -> None:
    """Start with small, distinct word vectors: T5's own initialisation draws them with a spread of 1."""
    for module in encoders.modules():
        if isinstance(module, nn.Embedding):
            module.weight.normal_(std=0.3)
