"""LoRA: a low-rank change `up @ down * alpha / rank` of a layer's weight (Hu et al., arXiv:2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfumato.adapters.layers import dense
from sfumato.adapters.layers.file_form import FileForm, Shapes, Tensors, Term
from sfumato.adapters.layers.ggpo import Noise
from sfumato.adapters.layers.kind import AdapterKind
from sfumato.adapters.layers.layer import NO_DROPOUTS, AdapterLayer, Dropouts, Strength, per_sample
from sfumato.adapters.layers.told_shape import ToldShape
from sfumato.errors import UserError
from sfumato.models.interface.targets import AdapterTarget
from sfumato.nn import low_rank

PREFIX = "lora_"
DOWN, UP = "lora_down.weight", "lora_up.weight"
"""Both halves, by their names in files."""
CORE = "lora_mid.weight"
"""The small kernel between them in LyCORIS' Tucker form of a convolution."""

RanksInTraining = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, float]]
"""Takes down (rank, in, ...) and up (out, rank, ...); returns both as a forward pass in training sees them,
and how much more they count."""


class Lora(nn.Module):
    """A LoRA of one Linear or Conv2d; for a convolution, down keeps its kernel and stride and up is 1x1.

    A layer in which several projections are fused can be split: each projection then has a LoRA of its own.
    They are stacked in one `lora_down`, and `lora_up` is block-diagonal, so that the file needs no conversion
    and any reader gets the same result: `alpha` grows with the number of parts, as the stacked rank does.
    """

    def __init__(
        self,
        target: AdapterTarget,
        rank: int,
        alpha: float | None = None,
        dropouts: Dropouts = NO_DROPOUTS,
        splits: tuple[int, ...] = (),
    ) -> None:
        """Make an untrained LoRA, which changes nothing.

        Args:
            target: the layer to adapt.
            rank: columns of one projection's down, at least 1.
            alpha: the change is scaled by alpha / rank; None or 0 means alpha = rank, though 0 in a file that
                is loaded switches the layer off. As in sd-scripts, an int is stored as int64 and a float as
                float32.
            dropouts: what to leave out during training.
            splits: output widths of the fused projections that are adapted separately; empty for none.
        """
        super().__init__()
        parts = max(1, len(splits))
        self.name = PREFIX + target.name
        self.target = target
        self.strength: Strength = 1.0
        self.dropouts = dropouts
        self.rank = rank * parts
        self.lora_down, self.lora_up = _projections(target.module, self.rank)
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor((alpha or rank) * parts))
        self.nested: RanksInTraining | None = None
        self.noise: Noise | None = None
        self._blocks: Tensor | None
        self.register_buffer("_blocks", _block_mask(splits, rank) if splits else None, persistent=False)
        self._update_scale()
        self.register_load_state_dict_post_hook(lambda *_: self._after_loading())
        self.reset_parameters()

    @classmethod
    def from_tensors(
        cls,
        target: AdapterTarget,
        tensors: Tensors,
        dropouts: Dropouts = NO_DROPOUTS,
    ) -> Lora:
        """Make an untrained LoRA of the rank and alpha that a file has; without an alpha, alpha = rank."""
        alpha = tensors.get("alpha")
        rank = tensors[DOWN].shape[0]
        return cls(target, rank, None if alpha is None else alpha.item(), dropouts)

    @property
    def is_off(self) -> bool:
        """Whether alpha is 0, so that the layer changes nothing and learns nothing."""
        return self._scale == 0

    def reset_parameters(self) -> None:
        """Draw `down` anew from the global generator and set `up` to zero."""
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)

    def change(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return `output` plus the LoRA's own output; see `AdapterLayer`."""
        if self.is_off or (isinstance(self.strength, float | int) and self.strength == 0):
            return output
        if self._is_left_out():
            return output
        if not torch.is_autocast_enabled(inputs.device.type):
            inputs = inputs.to(self.lora_down.weight.dtype)
        down, up, boost = self._weights()
        hidden, scale = self._with_dropouts(dense.apply(self.lora_down, inputs, down))
        factor = per_sample(self.strength, hidden) * (scale * boost)
        if isinstance(factor, Tensor):
            hidden, factor = hidden * factor, 1.0
        if low_rank.is_quicker(output, hidden):
            changed = low_rank.add(output, hidden, up, factor)
        else:
            # The factor meets rank values a token, where the layer's own output may have thousands.
            own = dense.apply(self.lora_up, hidden if factor == 1 else hidden * factor, up)
            # In place: fresh memory for a sum as large as the output would cost as much as the sum.
            changed = own.to(output.dtype).add_(output)
        if self.noise and self.training:
            changed.add_(self.noise.of(inputs).to(output.dtype))
        return changed

    def delta(self) -> Tensor:
        """Return the change of the layer's weight at strength 1, shaped like the weight, in float32."""
        up, down = self._up_weight().float(), self.lora_down.weight.float()
        product = up.flatten(1) @ down.flatten(1)
        return (product * self._scale).reshape(self.target.module.get_parameter("weight").shape)

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Return the norm of the change; see `LimitsNorm`.

        It comes from two rank x rank matrices, |U D|^2 = sum(U^T U * D D^T), so that the product itself, as
        large as the layer, is never made.
        """
        up, down = self._up_weight().float().flatten(1), self.lora_down.weight.float().flatten(1)
        return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt() * abs(self._scale)

    @torch.no_grad()
    def scale(self, factor: Tensor) -> None:
        """Multiply up and down alike; see `LimitsNorm`."""
        for weight in (self.lora_up.weight, self.lora_down.weight):
            weight.mul_(factor.sqrt())

    def add_noise(self, sigma: float, beta: float) -> Noise:
        """Let noise act on the layer's weight in training; return it, for it must be told of steps."""
        module = self.target.module
        if not isinstance(module, nn.Linear):
            raise ValueError(f"{self.name}: noise is for Linear layers")
        self.noise = Noise(module, self.lora_down, self.lora_up, lambda: self._scale, sigma, beta)
        return self.noise

    def plus_parameters(self) -> list[nn.Parameter]:
        """Return `up`, which LoRA+ (arXiv:2402.12354) trains faster than `down`."""
        return list(self.lora_up.parameters())

    def extra_repr(self) -> str:
        """Return the shape of the adapter for printing."""
        return f"{self.name}, rank={self.rank}, alpha={self.alpha.item():g}"

    @torch.no_grad()
    def _after_loading(self) -> None:
        self._update_scale()
        if self._blocks is not None:  # what a file of another kind may have brought in would be saved again
            self.lora_up.weight.mul_(self._blocks)

    def _update_scale(self) -> None:
        """Read alpha once: reading it in every step would make the device wait."""
        self._scale = self.alpha.item() / self.rank

    def _is_left_out(self) -> bool:
        # Drawn on the CPU: the decision must not make the device wait.
        return bool(self.training and self.dropouts.module and torch.rand(()).item() < self.dropouts.module)

    def _with_dropouts(self, hidden: Tensor) -> tuple[Tensor, float]:
        """Drop values, then whole ranks of a sample; return what is left and the scale that keeps its mean.

        Args:
            hidden: (B, ..., rank) of a Linear, (B, rank, H, W) of a Conv2d.
        """
        if not self.training:
            return hidden, self._scale
        if self.dropouts.neuron:
            hidden = F.dropout(hidden, self.dropouts.neuron)
        if not self.dropouts.rank:
            return hidden, self._scale
        kept = torch.rand(hidden.shape[0], self.rank, device=hidden.device) > self.dropouts.rank
        inner = [1] * (hidden.dim() - 2)
        is_conv = isinstance(self.lora_down, nn.Conv2d)
        shape = (hidden.shape[0], self.rank, *inner) if is_conv else (hidden.shape[0], *inner, self.rank)
        return hidden * kept.reshape(shape), self._scale / (1 - self.dropouts.rank)

    def _weights(self) -> tuple[Tensor, Tensor, float]:
        """Return down, up and how much more they count in this forward pass."""
        down, up = self.lora_down.weight, self._up_weight()
        return self.nested(down, up) if self.nested and self.training else (down, up, 1.0)

    def _up_weight(self) -> Tensor:
        return self.lora_up.weight if self._blocks is None else self.lora_up.weight * self._blocks


def _projections(module: nn.Module, rank: int) -> tuple[nn.Linear | nn.Conv2d, nn.Linear | nn.Conv2d]:
    if isinstance(module, nn.Linear):
        return nn.Linear(module.in_features, rank, bias=False), nn.Linear(
            rank, module.out_features, bias=False
        )
    if isinstance(module, nn.Conv2d) and module.groups == 1:
        geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
        kernel, stride, padding, dilation = (cast("tuple[int, int]", value) for value in geometry)
        down = nn.Conv2d(module.in_channels, rank, kernel, stride, padding, dilation, bias=False)
        return down, nn.Conv2d(rank, module.out_channels, 1, bias=False)
    raise ValueError(f"LoRA adapts Linear and ungrouped Conv2d layers, not {module}")


def _block_mask(splits: tuple[int, ...], rank: int) -> Tensor:
    """Return (sum of splits, parts * rank) with ones where a projection meets its own ranks."""
    return torch.block_diag(*[torch.ones(width, rank) for width in splits])


@dataclass(frozen=True)
class LoraArguments:
    """How a LoRA is made and trained.

    Attributes:
        rank, alpha: as in `Lora`.
        is_split: adapt projections that are fused in one layer apart.
        ggpo_sigma, ggpo_beta: the strengths of the noise of `ggpo.py`; None is no noise.
    """

    rank: int = 4
    alpha: float | None = None
    is_split: bool = False
    ggpo_sigma: float | None = None
    ggpo_beta: float | None = None


def as_lora(layer: AdapterLayer) -> Lora:
    """Return a layer that is a LoRA as one; raise UserError if it is of another kind."""
    if not isinstance(layer, Lora):
        raise UserError(f"this --network_module trains LoRA files, but {layer.name} is of another kind")
    return layer


def _make(target: AdapterTarget, arguments: LoraArguments, dropouts: Dropouts) -> Lora:
    splits = target.splits if arguments.is_split else ()
    return Lora(target, arguments.rank, arguments.alpha, dropouts, splits)


def _add_noise(layer: AdapterLayer, arguments: LoraArguments) -> Noise | None:
    if arguments.ggpo_sigma is None or arguments.ggpo_beta is None:
        return None
    return as_lora(layer).add_noise(arguments.ggpo_sigma, arguments.ggpo_beta)


def _shape(shapes: Shapes) -> ToldShape:
    down = shapes[DOWN]
    return ToldShape(shapes[UP][0], math.prod(down[1:]), down[2:])


def _factors(tensors: Tensors) -> tuple[Tensor, Tensor] | None:
    if tensors.keys() - {"alpha"} != {DOWN, UP}:
        return None
    down, up = tensors[DOWN].flatten(1), tensors[UP].flatten(1)
    scale = float(tensors["alpha"]) / down.shape[0]
    return (up if scale == 1 else up.float() * scale), down


def scale_of(tensors: Tensors) -> float:
    """Return alpha / rank, or 1 without an alpha."""
    return float(tensors["alpha"]) / tensors[DOWN].shape[0] if "alpha" in tensors else 1.0


def _change(tensors: Tensors, own: Tensor, strength: float) -> Tensor:
    up, down = tensors[UP].float().flatten(1), tensors[DOWN].float().flatten(1)
    product = dense.tucker(tensors[CORE].float(), up.T, down) if CORE in tensors else up @ down
    return product * (scale_of(tensors) * strength)


KIND = AdapterKind(
    name="lora",
    title="LoRA",
    description="a LoRA",
    prefix=PREFIX,
    arguments=LoraArguments,
    make=_make,
    refine=_add_noise,
    dropouts=("neuron", "rank", "module"),
    has_plus=True,
    files=FileForm(
        marks=(DOWN,),
        load=Lora.from_tensors,
        tensors=r"lora_(up|down)\.weight",
        halves=((DOWN, UP),),
        ranks=("lora_down",),
        is_scaled=True,
        terms=(Term("weight", (DOWN,), _change, (UP, CORE)),),
        shape=_shape,
        factors=_factors,
    ),
)
