"""Muon: momentum whose every matrix is made orthogonal before it is applied.

It fits small networks several times faster than Adam (Jordan et al. 2024, "Muon: An optimizer for hidden
layers in neural networks"). torch.optim.Muon takes matrices only; this one takes kernels too.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

_QUINTIC = (3.4445, -4.7750, 2.0315)
"""Newton-Schulz coefficients that push singular values towards 1 in five rounds."""


class Muon(Optimizer):
    """Update each weight by an orthogonal matrix, scaled so that learning rates are those of Adam."""

    def __init__(self, weights: Iterable[Tensor], lr: float, momentum: float = 0.9) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Apply the gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                average = self.state[weight].setdefault("average", torch.zeros_like(weight))
                average.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"])
                direction = orthogonal(ahead.flatten(1))
                # An orthogonal n x m matrix has entries of size 1 / sqrt(max(n, m)); Adam's are about 0.2.
                scale = 0.2 * max(direction.shape) ** 0.5
                weight.add_(direction.view_as(weight), alpha=-group["lr"] * scale)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the nearest orthogonal matrix, (n, m), by Newton-Schulz iteration."""
    a, b, c = _QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    is_tall = x.shape[0] > x.shape[1]
    x = x.T if is_tall else x
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x
