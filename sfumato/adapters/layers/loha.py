"""LoHa: a change made of two low-rank matrices multiplied number by number (FedPara, arXiv:2108.06098).

`(w1_a @ w1_b) * (w2_a @ w2_b) * alpha / rank` reaches rank^2 with the numbers of two LoRAs. Names, shapes and
first numbers are those of LyCORIS (arXiv:2309.14859).
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


class Loha(nn.Module):
    """A LoHa of one Linear or Conv2d."""

    def __init__(
        self,
        target: AdapterTarget,
        rank: int,
        alpha: float | None = None,
        dropouts: Dropouts = NO_DROPOUTS,
        has_core: bool = False,
    ) -> None:
        """Make an untrained LoHa, which changes nothing.

        Args:
            target: the layer to adapt.
            rank: of each of the two factors, at least 1.
            alpha: the change is scaled by alpha / rank; None or 0 means alpha = rank, though 0 in a file that
                is loaded switches the layer off.
            dropouts: what to leave out during training.
            has_core: factor convolutions larger than 1x1 along both channels and keep a small kernel
                (a Tucker decomposition), instead of treating them as matrices.
        """
        super().__init__()
        self.name = dense.PREFIX + target.name
        self.target = target
        self.strength: Strength = 1.0
        self.dropouts = dropouts
        self.rank = rank
        out, inner, *kernel = dense.shape_of(target.module)
        if has_core and math.prod(kernel) > 1:
            sides = {"a": (rank, out), "b": (rank, inner)}
            dense.register(self, {f"hada_t{i}": (rank, rank, *kernel) for i in (1, 2)})
        else:
            sides = {"a": (out, rank), "b": (rank, inner * math.prod(kernel))}
        dense.register(self, {f"hada_w{i}_{side}": shape for i in (1, 2) for side, shape in sides.items()})
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(alpha or rank))
        self._update_scale()
        self.register_load_state_dict_post_hook(lambda *_: self._update_scale())
        self.reset_parameters()

    @classmethod
    def from_tensors(cls, target: AdapterTarget, tensors: Tensors, dropouts: Dropouts = NO_DROPOUTS) -> Loha:
        """Make an untrained LoHa of the rank, alpha and form that a file has."""
        rank = tensors["hada_w1_b"].shape[0]
        alpha = tensors.get("alpha")
        return cls(target, rank, None if alpha is None else alpha.item(), dropouts, "hada_t1" in tensors)

    @property
    def is_off(self) -> bool:
        """Whether alpha is 0, so that the layer changes nothing and learns nothing."""
        return self._scale == 0

    def reset_parameters(self) -> None:
        """Draw the first product and half of the second from the global generator; the other half is zero."""
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=1.0 if name.endswith("_b") else 0.1)
        nn.init.zeros_(self.get_parameter("hada_w2_a"))

    def change(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return `output` plus what the change of the weight makes of `inputs`; see `AdapterLayer`."""
        strength = 0.0 if self.is_off else self.strength
        return dense.changed(self, self.target.module, inputs, output, self._weight, strength, self.dropouts)

    def delta(self) -> Tensor:
        """Return the change of the layer's weight at strength 1, shaped like the weight, in float32."""
        return self._weight(torch.float32)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Return the norm of the change; see `LimitsNorm`."""
        return self.delta().norm()

    @torch.no_grad()
    def scale(self, factor: Tensor) -> None:
        """Multiply both products alike; see `LimitsNorm`."""
        for i in (1, 2):
            self.get_parameter(f"hada_w{i}_a").mul_(factor.sqrt())

    def plus_parameters(self) -> list[nn.Parameter]:
        """Return nothing: LoRA+ says nothing about products of this kind."""
        return []

    def extra_repr(self) -> str:
        """Return the shape of the adapter for printing."""
        return f"{self.name}, rank={self.rank}, alpha={self.alpha.item():g}"

    def _update_scale(self) -> None:
        """Read alpha once: reading it in every step would make the device wait."""
        self._scale = self.alpha.item() / self.rank

    def _weight(self, dtype: torch.dtype | None = None) -> Tensor:
        product = _product(self._parameters, 1, dtype) * _product(self._parameters, 2, dtype) * self._scale
        return product.reshape(dense.shape_of(self.target.module))


@dataclass(frozen=True)
class LohaArguments:
    """How a LoHa is made; see `Loha`."""

    rank: int = 4
    alpha: float | None = None
    has_core: bool = False


def _make(target: AdapterTarget, arguments: LohaArguments, dropouts: Dropouts) -> Loha:
    return Loha(target, arguments.rank, arguments.alpha, dropouts, arguments.has_core)


def _product(tensors: Mapping[str, Tensor | None], index: int, dtype: torch.dtype | None) -> Tensor:
    a, b, core = (tensors.get(name) for name in (f"hada_w{index}_a", f"hada_w{index}_b", f"hada_t{index}"))
    assert a is not None
    assert b is not None
    a, b = a.to(dtype or a.dtype), b.to(dtype or b.dtype)
    return a @ b if core is None else dense.tucker(core.to(a.dtype), a, b)


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    scale = float(tensors["alpha"]) / tensors["hada_w1_b"].shape[0] if "alpha" in tensors else 1.0
    product = _product(tensors, 1, torch.float32) * _product(tensors, 2, torch.float32)
    return product * (scale * strength)


_FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
_CORES = ("hada_t1", "hada_t2")


def _shape(shapes: Shapes) -> ToldShape:
    outer, inner = shapes["hada_w1_a"], shapes["hada_w1_b"]
    if "hada_t1" not in shapes:
        return ToldShape(outer[0], inner[1], None)
    kernel = shapes["hada_t1"][2:]
    return ToldShape(outer[1], inner[1] * math.prod(kernel), kernel)


KIND = AdapterKind(
    name="loha",
    title="LoHa",
    description="a LoHa",
    prefix=dense.PREFIX,
    arguments=LohaArguments,
    make=_make,
    dropouts=("rank", "module"),
    files=FileForm(
        marks=("hada_w1_b",),
        load=Loha.from_tensors,
        tensors=r"hada_(w[12]_[ab]|t[12])",
        together=(_FACTORS, _CORES),
        ranks=("hada_w1_b",),
        is_scaled=True,
        terms=(Term("weight", ("hada_w1_b",), _change, (*_FACTORS, *_CORES)),),
        shape=_shape,
    ),
)
