"""Prompts as the denoiser reads them, with emphasis where the family knows what that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.models.interface.family import Family, NormalizesEmphasis, ReadsEmphasis

Tokens = Mapping[str, Tensor]
"""One prompt as the text encoders take it: `Family.tokenize`'s output for it."""

Text = Mapping[str, Tensor]
"""One prompt as the denoiser reads it: the text encoders' outputs by name, each (1, ...)."""


class PromptReader(Protocol):
    """How prompts become what a denoiser reads."""

    def tokenize(self, prompts: Sequence[str]) -> Mapping[str, Tokens]:
        """Return the tokens of each prompt, by prompt; those given at once may be made equally long."""
        ...

    def encode(self, name: str, encoder: nn.Module, tokens: Tokens) -> Text:
        """Return the outputs of the encoder of that name for a prompt, each (1, ...)."""
        ...


@dataclass(frozen=True)
class FamilyReader:
    """Reads prompts as the family does, with emphasis where it knows what that is."""

    family: Family

    def tokenize(self, prompts: Sequence[str]) -> dict[str, Tokens]:
        """Return the tokens of each prompt, by prompt."""
        return tokenize_prompts(self.family, prompts)

    def encode(self, name: str, encoder: nn.Module, tokens: Tokens) -> dict[str, Tensor]:
        """Return one encoder's outputs for a prompt."""
        return encode_prompt(self.family, name, encoder, tokens)


def tokenize_prompt(family: Family, prompt: str) -> Tokens:
    """Return the tokens of one prompt; see `tokenize_prompts`."""
    return tokenize_prompts(family, [prompt])[prompt]


def tokenize_prompts(family: Family, prompts: Sequence[str]) -> dict[str, Tokens]:
    """Return the tokens of prompts, by prompt; brackets are emphasis if the family can read them so.

    Such a family may bring all prompts to one length.
    """
    distinct = list(dict.fromkeys(prompts))
    if not distinct or not isinstance(family, ReadsEmphasis):
        return {prompt: family.tokenize([prompt]) for prompt in distinct}
    rows = {name: tokens.split(1) for name, tokens in family.tokenize_prompts(distinct).items()}
    return {prompt: {name: row[place] for name, row in rows.items()} for place, prompt in enumerate(distinct)}


def encode_prompt(family: Family, name: str, encoder: nn.Module, tokens: Tokens) -> dict[str, Tensor]:
    """Return one encoder's outputs, each (1, ...), for a prompt.

    Emphasis leaves the mean of an output as it would be without, so that it does not move the whole image,
    unless the family says otherwise.

    Args:
        name: of the encoder.
        tokens: of all encoders; what is not this one's is left alone.
    """
    device = next(encoder.parameters()).device
    own = {key: tokens[key].to(device) for key in (name, f"{name}_mask") if key in tokens}
    plain = family.encode_text({name: encoder}, own)
    weights = tokens.get(f"{name}_weights")
    if weights is None or bool((weights == 1).all()):
        return plain
    weighted = family.encode_text({name: encoder}, {**own, f"{name}_weights": weights.to(device)})
    kept = family.emphasis_mean if isinstance(family, NormalizesEmphasis) else "original"
    if kept == "none":
        return weighted
    return {key: with_mean(value, plain[key], is_absolute=kept == "abs") for key, value in weighted.items()}


def with_mean(weighted: Tensor, plain: Tensor, *, is_absolute: bool = False) -> Tensor:
    """Scale `weighted`, (B, ...), so that each row's mean is that of `plain`; whole numbers stay as they are.

    Args:
        is_absolute: keep the mean of absolute values instead.
    """
    if not weighted.is_floating_point():
        return weighted
    axes = tuple(range(1, weighted.ndim))
    values = (weighted.float(), plain.float())
    found, wanted = ((v.abs() if is_absolute else v).mean(axes, keepdim=True) for v in values)
    return (weighted * torch.where(found == 0, 1.0, wanted / found)).to(weighted.dtype)
