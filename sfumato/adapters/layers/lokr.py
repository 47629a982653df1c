"""LoKr: a change that is the Kronecker product of a small and a larger matrix (LyCORIS, arXiv:2309.14859).

`w1 (x) w2 * alpha / rank`: each number of w1 scales a copy of w2. Either factor may be low-rank itself.
Names, shapes and first numbers are those of LyCORIS.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.adapters.layers import dense
from sfumato.adapters.layers.file_form import FileForm, Shapes, Tensors, Term
from sfumato.adapters.layers.kind import AdapterKind
from sfumato.adapters.layers.layer import NO_DROPOUTS, Dropouts, Strength
from sfumato.adapters.layers.told_shape import ToldShape
from sfumato.models.interface.targets import AdapterTarget

_LARGEST = -1
"""A factor that stands for: divide as evenly as can be."""
WHOLE = "lokr_w1"
"""The small factor where it is no product of two."""
_MARKS = (WHOLE, "lokr_w1_a")
_RANKED = ("lokr_w1_b", "lokr_w2_b")
"""Tensors whose first side is the rank, if there is any."""


class Lokr(nn.Module):
    """A LoKr of one Linear or Conv2d."""

    def __init__(
        self,
        target: AdapterTarget,
        shapes: Mapping[str, tuple[int, ...]],
        alpha: float | None = None,
        dropouts: Dropouts = NO_DROPOUTS,
    ) -> None:
        """Make an untrained LoKr, which changes nothing.

        Args:
            target: the layer to adapt.
            shapes: of all tensors, as `shapes_for` returns them or as a file has them.
            alpha: a low-rank factor is scaled by alpha / rank; None or 0 means alpha = rank. Without a
                low-rank factor nothing is scaled. In a file that is loaded, 0 switches any layer off.
            dropouts: what to leave out during training.
        """
        super().__init__()
        self.name = dense.PREFIX + target.name
        self.target = target
        self.strength: Strength = 1.0
        self.dropouts = dropouts
        dense.register(self, shapes)
        self.rank = next((shapes[name][0] for name in _RANKED if name in shapes), None)
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(alpha or self.rank or 1))
        self._update_scale()
        self.register_load_state_dict_post_hook(lambda *_: self._update_scale())
        self.reset_parameters()

    @classmethod
    def from_tensors(cls, target: AdapterTarget, tensors: Tensors, dropouts: Dropouts = NO_DROPOUTS) -> Lokr:
        """Make an untrained LoKr of the shapes and the alpha that a file has."""
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if name.startswith("lokr_")}
        alpha = tensors.get("alpha")
        return cls(target, shapes, None if alpha is None else alpha.item(), dropouts)

    @property
    def is_off(self) -> bool:
        """Whether alpha is 0, so that the layer changes nothing and learns nothing."""
        return self._scale == 0

    def reset_parameters(self) -> None:
        """Draw the factors from the global generator; w2, or the second half of it, is zero."""
        for parameter in self.parameters():
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        nn.init.zeros_(self.get_parameter("lokr_w2" if "lokr_w2" in self._parameters else "lokr_w2_b"))

    def change(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return `output` plus what the change of the weight makes of `inputs`; see `AdapterLayer`."""
        strength = 0.0 if self.is_off else self.strength
        return dense.changed(self, self.target.module, inputs, output, self._weight, strength, self.dropouts)

    def delta(self) -> Tensor:
        """Return the change of the layer's weight at strength 1, shaped like the weight, in float32."""
        return self._weight(torch.float32)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Return the norm of the change; see `LimitsNorm`.

        The norm of a Kronecker product is the product of the norms, so that it need not be made.
        """
        first, second = (self._factor(index, torch.float32).norm() for index in (1, 2))
        return first * second * abs(self._scale)

    @torch.no_grad()
    def scale(self, factor: Tensor) -> None:
        """Multiply both factors alike; see `LimitsNorm`."""
        for index in (1, 2):
            whole = f"lokr_w{index}"
            self.get_parameter(whole if whole in self._parameters else f"{whole}_a").mul_(factor.sqrt())

    def plus_parameters(self) -> list[nn.Parameter]:
        """Return nothing: LoRA+ says nothing about products of this kind."""
        return []

    def extra_repr(self) -> str:
        """Return the shape of the adapter for printing."""
        return f"{self.name}, rank={self.rank or 'full'}, alpha={self.alpha.item():g}"

    def _update_scale(self) -> None:
        """Read alpha once: reading it in every step would make the device wait."""
        alpha = self.alpha.item()
        self._scale = alpha / self.rank if self.rank else float(alpha != 0)

    def _weight(self, dtype: torch.dtype | None = None) -> Tensor:
        product = _product(self._factor(1, dtype), self._factor(2, dtype), self._scale)
        return product.reshape(dense.shape_of(self.target.module))

    def _factor(self, index: int, dtype: torch.dtype | None) -> Tensor:
        return _factor(self._parameters, index, dtype)


def shapes_for(
    module: nn.Module,
    rank: int,
    factor: int = _LARGEST,
    *,
    has_low_rank_small: bool = False,
    has_core: bool = False,
    is_full: bool = False,
) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a LoKr.

    Args:
        module: the Linear or Conv2d to adapt.
        rank: of the larger factor, which is kept whole where the rank is half its larger side or more.
        factor: how many times the larger factor is repeated along each side, if that divides the side; -1 is
            as often as it is large.
        has_low_rank_small: give the small factor the same rank, where that saves anything.
        has_core: as in `Loha`, for the larger factor.
        is_full: keep both factors whole.
    """
    out, inner, *kernel = dense.shape_of(module)
    (out_small, out_large), (in_small, in_large) = split(out, factor), split(inner, factor)
    size = math.prod(kernel)
    shapes: dict[str, tuple[int, ...]] = {}
    if has_low_rank_small and not is_full and rank < max(out_small, in_small) / 2:
        shapes |= {"lokr_w1_a": (out_small, rank), "lokr_w1_b": (rank, in_small)}
    else:
        shapes["lokr_w1"] = (out_small, in_small)
    if is_full or rank >= max(out_large, in_large) / 2:
        return shapes | {"lokr_w2": (out_large, in_large, *kernel)}
    if has_core and size > 1:
        core = {"lokr_t2": (rank, rank, *kernel)}
        return shapes | core | {"lokr_w2_a": (rank, out_large), "lokr_w2_b": (rank, in_large)}
    return shapes | {"lokr_w2_a": (out_large, rank), "lokr_w2_b": (rank, in_large * size)}


def split(width: int, factor: int = _LARGEST) -> tuple[int, int]:
    """Return two numbers whose product is `width`, the smaller one first.

    One of them is `factor` where that divides the width. Otherwise, and for -1, the smaller one is the
    largest divisor that is not above the square root, nor above a positive factor.
    """
    if factor > 0 and width % factor == 0:
        return min(factor, width // factor), max(factor, width // factor)
    most = math.isqrt(width) if factor < 0 else min(factor, math.isqrt(width))
    small = next(divisor for divisor in range(max(most, 1), 0, -1) if width % divisor == 0)
    return small, width // small


@dataclass(frozen=True)
class LokrArguments:
    """How a LoKr is made; see `shapes_for`."""

    rank: int = 4
    alpha: float | None = None
    factor: int = _LARGEST
    has_low_rank_small: bool = False
    has_core: bool = False
    is_full: bool = False


def _make(target: AdapterTarget, arguments: LokrArguments, dropouts: Dropouts) -> Lokr:
    shapes = shapes_for(
        target.module,
        arguments.rank,
        arguments.factor,
        has_low_rank_small=arguments.has_low_rank_small,
        has_core=arguments.has_core,
        is_full=arguments.is_full,
    )
    return Lokr(target, shapes, arguments.alpha, dropouts)


def _factor(tensors: Mapping[str, Tensor | None], index: int, dtype: torch.dtype | None) -> Tensor:
    names = [f"lokr_w{index}", f"lokr_w{index}_a", f"lokr_w{index}_b", f"lokr_t{index}"]
    found = (tensors.get(name) for name in names)
    whole, a, b, core = (None if p is None else p.to(dtype or p.dtype) for p in found)
    if whole is not None:
        return whole
    assert a is not None
    assert b is not None
    return a @ b if core is None else dense.tucker(core, a, b)


def _product(small: Tensor, large: Tensor, scale: float) -> Tensor:
    small = small.reshape(*small.shape, *[1] * (large.dim() - 2)) * scale
    return torch.kron(small, large.contiguous())


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    ranks = [tensors[name].shape[0] for name in _RANKED if name in tensors]
    scale = float(tensors["alpha"]) / ranks[0] if ranks and "alpha" in tensors else 1.0
    small, large = (_factor(tensors, index, torch.float32) for index in (1, 2))
    return _product(small, large, scale * strength)


def _shape(shapes: Shapes) -> ToldShape:
    (rows, columns), (more_rows, more_columns) = _sides(shapes, 1), _sides(shapes, 2)
    with_kernel = next((shapes[key] for key in ("lokr_t2", "lokr_w2") if key in shapes), None)
    kernel = None if with_kernel is None else with_kernel[2:]
    return ToldShape(rows * more_rows, columns * more_columns, kernel)


def _sides(shapes: Shapes, index: int) -> tuple[int, int]:
    """Return both sides of a factor, a kernel being part of the second."""
    whole = shapes.get(f"lokr_w{index}")
    if whole is not None:
        return whole[0], math.prod(whole[1:])
    outer, inner, core = shapes[f"lokr_w{index}_a"], shapes[f"lokr_w{index}_b"], shapes.get(f"lokr_t{index}")
    if core is not None:
        return outer[1], inner[1] * math.prod(core[2:])
    return outer[0], inner[1]


KIND = AdapterKind(
    name="lokr",
    title="LoKr",
    description="a LoKr",
    prefix=dense.PREFIX,
    arguments=LokrArguments,
    make=_make,
    dropouts=("rank", "module"),
    files=FileForm(
        marks=_MARKS,
        load=Lokr.from_tensors,
        tensors=r"lokr_(w[12](_[ab])?|t2)",
        together=(("lokr_w1_a", "lokr_w1_b"), ("lokr_w2_a", "lokr_w2_b")),
        choices=(_MARKS, ("lokr_w2", "lokr_w2_a")),
        ranks=_RANKED,
        is_scaled=True,
        terms=(Term("weight", _MARKS, _change, (*_RANKED, "lokr_w2", "lokr_w2_a", "lokr_t2")),),
        shape=_shape,
    ),
)
