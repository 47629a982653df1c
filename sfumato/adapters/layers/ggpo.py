"""GGPO: noise on the weights of adapted layers in training, so that it settles where the loss is flat.

Gradient-guided perturbation (LoRA-GGPO, Chang et al., arXiv:2502.14538) builds on Flat-LoRA (Li et al.,
arXiv:2409.14396), whose noise goes by the rows of the adapted weight alone. This is the form that sd-scripts
gives it, so that its `ggpo_sigma` and `ggpo_beta` mean the same: in every forward pass in training the weight
gets normal noise, whose standard deviation in row i of n is

    (sigma * sqrt(|w_i|^2 + |d_i|^2) + beta * |g_i|^2) / sqrt(n)

with w the layer's own weight and d = scale * up @ down its change, taken for orthogonal, and

    g = scale * (up @ down.grad + up.grad @ down)

the gradient of the change as those of its factors tell it after each step. n counts outputs; Flat-LoRA, which
wants outputs to vary alike in layers of all widths, divides by the root of the inputs' number. The noise is
random and sd-scripts' generator another one: what is checked is the formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Noise:
    """The noise on one Linear layer that a LoRA adapts."""

    def __init__(
        self,
        module: nn.Linear,
        down: nn.Module,
        up: nn.Module,
        scale: Callable[[], float],
        sigma: float,
        beta: float,
    ) -> None:
        """Take the layer, the factors of its LoRA, by what their product is multiplied, and the strengths."""
        self.gradient_norms = torch.zeros(module.out_features)
        self._module, self._down, self._up, self._scale = module, down, up, scale
        self._sigma, self._beta = float(sigma), float(beta)
        self._own_norms: Tensor | None = None
        self._change_norms: Tensor | None = None

    @torch.no_grad()
    def step_begins(self) -> None:
        """Measure the change that this step starts with."""
        up, down = self._factors()
        self._change_norms = _row_norms(up, down) * abs(self._scale())

    def of(self, inputs: Tensor) -> Tensor:
        """Return what newly drawn noise on the weight makes of `inputs` (..., in), as a constant."""
        with torch.no_grad():
            weight, device = self._module.weight, inputs.device
            own = self._own_norms
            if own is None:  # measured here: elsewhere the weight may wait in another memory
                own = self._own_norms = torch.linalg.vector_norm(weight.float(), dim=1)
            rows = own if self._change_norms is None else torch.hypot(own, self._change_norms.to(device))
            spread = rows * self._sigma + self.gradient_norms.to(device).square() * self._beta
            noise = torch.randn(weight.shape, dtype=inputs.dtype, device=device)
            return F.linear(inputs, noise) * (spread / math.sqrt(weight.shape[0])).to(inputs.dtype)

    @torch.no_grad()
    def step_ends(self) -> tuple[Tensor, Tensor]:
        """Measure the gradient that the step followed; return the mean norms of change and gradient, 0-d."""
        up, down = self._factors()
        up_slope, down_slope = self._up.weight.grad, self._down.weight.grad
        if isinstance(up_slope, Tensor) and isinstance(down_slope, Tensor):
            left = torch.cat((up, up_slope.float()), 1)
            right = torch.cat((down_slope.float(), down))
            self.gradient_norms = self.gradient_norms.to(up.device)
            self.gradient_norms.copy_(_row_norms(left, right) * abs(self._scale()))
        return (_row_norms(up, down) * abs(self._scale())).mean(), self.gradient_norms.to(up.device).mean()

    def _factors(self) -> tuple[Tensor, Tensor]:
        up, down = self._up.weight, self._down.weight
        assert isinstance(up, Tensor)
        assert isinstance(down, Tensor)
        return up.float(), down.float()


def _row_norms(left: Tensor, right: Tensor) -> Tensor:
    """Return the norm of each row of `left @ right` (n, r) x (r, m), without making the product."""
    return ((left @ (right @ right.T)) * left).sum(1).clamp(min=0).sqrt()
