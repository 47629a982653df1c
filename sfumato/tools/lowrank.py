"""Matrices of low rank that are as close as possible to a given one, and how close that is.

A truncated singular value decomposition is the best approximation of its rank. Computing all singular values
of a large matrix to keep a few is slow; the range finder of Halko, Martinsson and Tropp 2011
(arXiv:0909.4061, algorithm 4.4) multiplies a few random directions by the matrix, back and forth, until they
span what matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato import seeds

_OVERSAMPLING = 10
"""Directions beyond the rank: they take up what would blur the last ones."""
_EXACT_BELOW = 4
"""A matrix whose smaller side is at most so many times the number of directions is decomposed as a whole."""
_MOST_ROUNDS = 12
_SETTLED = 3e-4
"""The rounds end when those to come are expected to lower the squared error by less than this share."""
_RATES = (0.1, 0.5)
"""What a round gains, of what the round before it gained, is taken to lie between these."""
_ROUNDING = 1e-6
"""Shares of a squared norm that float32 cannot tell from none."""
_PROBES, _PROBE_ROUNDS, _PROBE_FACTOR = 6, 3, 10.0
"""The bound fails with a probability of `_PROBE_FACTOR` to the power of `-_PROBES`."""


@dataclass(frozen=True)
class LowRank:
    """The approximation `left @ diag(values) @ right` of a matrix (m, n).

    Attributes:
        left: (m, k), orthonormal columns.
        values: (k,), descending.
        right: (k, n), orthonormal rows.
        norm: Frobenius norm of the matrix.
        error: Frobenius norm of what is left out.
        least_error: no approximation of this rank has a smaller error; equal to `error` if the decomposition
            was exact, otherwise it holds with a probability of 1 - 1e-6.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    norm: float
    error: float
    least_error: float

    def truncated(self, rank: int) -> LowRank:
        """Return the best approximation of a smaller rank; only for an exact decomposition."""
        dropped = exact(self.values[rank:]).square().sum().item()
        error = math.sqrt(self.error**2 + dropped)
        return LowRank(self.left[:, :rank], self.values[:rank], self.right[:rank], self.norm, error, error)

    def factors(self, quantile: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return `up` (m, k) and `down` (k, n), whose product is the approximation; `up` has the size of it.

        Args:
            quantile: as `clamped` has it.
        """
        return clamped(self.left * self.values, self.right, quantile)


def low_rank(matrix: Tensor, rank: int, seed: str, *, is_exact: bool = False) -> LowRank:
    """Return an approximation of a matrix (m, n), at most of `rank`.

    Args:
        seed: the same text gives the same random directions, on every device.
        is_exact: decompose the whole matrix, whatever time it takes.
    """
    rank = min(rank, *matrix.shape)
    width = rank + _OVERSAMPLING
    if is_exact or min(matrix.shape) <= _EXACT_BELOW * width:
        return decomposed(matrix).truncated(rank)
    total = _squared(matrix)
    draw = seeded(seed)
    basis, core, directions = _range(matrix, rank, width, total, draw)
    inner, values, turned = torch.linalg.svd(core.T)
    error = max(0.0, total - _squared(values[:rank]))
    error = error if error > _ROUNDING * total else 0.0
    missed = min(error, rank * _largest_value_outside(matrix, basis, draw) ** 2)
    return LowRank(
        basis @ inner[:, :rank],
        values[:rank],
        turned[:rank] @ directions.T,
        math.sqrt(total),
        math.sqrt(error),
        math.sqrt(error - missed),
    )


def decomposed(matrix: Tensor) -> LowRank:
    """Return the whole singular value decomposition of a matrix."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return LowRank(left, values, right, math.sqrt(_squared(values)), 0.0, 0.0)


def decomposed_product(up: Tensor, down: Tensor) -> LowRank:
    """Return the singular value decomposition of `up @ down` (m, r) (r, n) without making the product.

    Sums of products are products too, of the factors side by side: so several are decomposed at once.
    """
    basis, core = torch.linalg.qr(up)
    directions, other = torch.linalg.qr(down.T)
    inner = decomposed(core @ other.T)
    left, right = basis @ inner.left, inner.right @ directions.T
    return LowRank(left, inner.values, right, inner.norm, 0.0, 0.0)


def clamped(up: Tensor, down: Tensor, quantile: float) -> tuple[Tensor, Tensor]:
    """Limit the largest values of both factors, as sd-scripts does to what it decomposes.

    There the limit is a quantile of the values with their signs. Signs of singular vectors are arbitrary, and
    with them the result; here it is the quantile of the magnitudes that is the same for values as often
    positive as negative.

    Args:
        quantile: above 0.5; 1 changes nothing.
    """
    if quantile >= 1:
        return up, down
    magnitudes = torch.cat([up.flatten(), down.flatten()]).abs()
    place = math.ceil((2 * quantile - 1) * len(magnitudes))
    limit = magnitudes.kthvalue(max(1, place)).values
    return up.clamp(-limit, limit), down.clamp(-limit, limit)


def seeded(text: str) -> torch.Generator:
    """Return a generator on the CPU that always draws the same for the same text."""
    return torch.Generator().manual_seed(seeds.derive("low rank", text))


def _range(
    matrix: Tensor, rank: int, width: int, total: float, draw: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return an orthonormal basis (m, w) of what matters in a matrix, and what the matrix is in it.

    Returns:
        basis, core (w, w) and directions (n, w) with `basis.T @ matrix = core.T @ directions.T`.
    """
    directions = torch.randn(matrix.shape[1], width, generator=draw).to(matrix)
    basis = core = directions
    found = gain = 0.0
    for _ in range(_MOST_ROUNDS):
        basis = torch.linalg.qr(matrix @ directions)[0]
        directions, core = torch.linalg.qr(_backward(matrix, basis))
        before, found = found, _squared(torch.linalg.svdvals(core)[:rank])
        earlier, gain = gain, found - before
        rate = min(max(gain / earlier, _RATES[0]), _RATES[1]) if earlier else _RATES[1]
        if gain * rate / (1 - rate) <= max(_SETTLED * (total - found), _ROUNDING * total):
            break
    return basis, core, directions


def _largest_value_outside(matrix: Tensor, basis: Tensor, draw: torch.Generator) -> float:
    """Return a bound on the largest singular value of what a basis leaves of a matrix.

    Singular values obey `s_i(A)^2 <= s_i(Q^T A)^2 + |A - Q Q^T A|^2`, so it bounds what is missed. With R the
    rest, w random and p probes, |R|^(2q+1) <= a sqrt(2/pi) max |(R R^T)^q R w| but for a chance of a^-p
    (Dixon 1983; Halko et al., section 4.3 with powers as in 4.5).
    """

    def outside(vectors: Tensor) -> Tensor:
        return vectors - basis @ (basis.T @ vectors)

    probes = torch.randn(matrix.shape[1], _PROBES, generator=draw).to(matrix)
    grown = torch.zeros(_PROBES, dtype=torch.float64)
    vectors = outside(matrix @ probes)
    for _ in range(_PROBE_ROUNDS):
        lengths = vectors.norm(dim=0).clamp(min=torch.finfo(vectors.dtype).tiny)
        grown += exact(lengths).log()  # powers would overflow
        vectors = outside(matrix @ _backward(matrix, vectors / lengths))
    logs = grown + exact(vectors.norm(dim=0)).log()
    power = 2 * _PROBE_ROUNDS + 1
    return math.exp((logs.max().item() + math.log(_PROBE_FACTOR * math.sqrt(2 / math.pi))) / power)


def _backward(matrix: Tensor, vectors: Tensor) -> Tensor:
    """Return `matrix.T @ vectors`, in the order that reads the matrix row by row: it is much faster."""
    return (vectors.T @ matrix).T


def _squared(values: Tensor) -> float:
    """Return the sum of squares, row by row in float32 and over rows in float64."""
    return exact(values.norm(dim=-1)).square().sum().item()


def exact(values: Tensor) -> Tensor:
    """Return a few numbers in float64, on the CPU: not every device has that format."""
    return values.cpu().double()
