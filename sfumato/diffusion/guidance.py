"""Guidance: making a prediction follow its prompt more than the model would by itself."""

from __future__ import annotations

from torch import Tensor


def away_from(
    conditional: Tensor,
    neutral: Tensor,
    negative: Tensor,
    scale: float | Tensor,
    negative_scale: float | Tensor,
) -> Tensor:
    """Extrapolate from the prediction without any prompt towards the wanted one, and away from the unwanted.

    With equal scales, what both prompts say alike is left alone.

    Args:
        conditional, neutral, negative: (B, C, H/8, W/8), predictions of the same kind for the same input.
        scale, negative_scale: numbers, or (B, 1, 1, 1).
    """
    return neutral + scale * (conditional - neutral) - negative_scale * (negative - neutral)


def rescaled(guided: Tensor, conditional: Tensor, share: float | Tensor) -> Tensor:
    """Bring guided latents back to the deviation of those that their prompt alone leads to.

    Guidance widens their range, up to overexposed images: Lin et al. 2023 (arXiv:2305.08891), eq. 15 and 16.

    Args:
        guided, conditional: (B, C, H/8, W/8), clean latents as they are predicted.
        share: of the change, in [0, 1]: a number, or (B, 1, 1, 1).
    """
    wanted, found = (each.flatten(1).std(dim=1).reshape(-1, 1, 1, 1) for each in (conditional, guided))
    return guided * (share * wanted / found + 1 - share)


def classifier_free(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Extrapolate from the unconditional prediction through the conditional one.

    Ho & Salimans 2022 (arXiv:2207.12598).

    Args:
        conditional, unconditional: (B, C, H/8, W/8), predictions of the same kind for the same input.
        scale: a number, or (B, 1, 1, 1); 1 returns `conditional`, 0 `unconditional`, and above 1 follows the
            prompt more.
    """
    return unconditional + scale * (conditional - unconditional)
