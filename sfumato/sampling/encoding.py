"""Prompts as the denoiser reads them, with emphasis where the family knows what that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from sfumato.models.interface.family import Family, ReadsEmphasis

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
        return {prompt: tokenize_prompt(self.family, prompt) for prompt in prompts}

    def encode(self, name: str, encoder: nn.Module, tokens: Tokens) -> dict[str, Tensor]:
        """Return one encoder's outputs for a prompt."""
        return encode_prompt(self.family, name, encoder, tokens)


def tokenize_prompt(family: Family, prompt: str) -> dict[str, Tensor]:
    """Return a prompt's tokens; brackets in it are emphasis if the family can read them so."""
    if isinstance(family, ReadsEmphasis):
        return family.tokenize_prompts([prompt])
    return family.tokenize([prompt])


def encode_prompt(family: Family, name: str, encoder: nn.Module, tokens: Tokens) -> dict[str, Tensor]:
    """Return one encoder's outputs, each (1, ...), for a prompt.

    Emphasis leaves the mean of an output as it would be without, so that it does not move the whole image.

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
    return {key: with_mean(value, plain[key]) for key, value in weighted.items()}


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
