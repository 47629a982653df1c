"""OFT: a change that rotates a layer's outputs, block by block (Qiu et al., arXiv:2306.07280).

The outputs are cut into blocks of equal size. Each block has a skew-symmetric matrix Q, learned, and is
turned by the orthogonal R that belongs to it (the Cayley transform): the angles between neurons, and their
lengths, stay as they are. At strength s the weight becomes `(s R + (1 - s) I) W`. The norm of all Q of one
projection is kept below `alpha` times its width.

`R W x` is R times what the layer makes of x, so that R is applied to outputs: no weight is ever made, and the
layer's own may be stored in any format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfumato.adapters.layers import dense
from sfumato.adapters.layers.file_form import FileForm, Tensors
from sfumato.adapters.layers.kind import AdapterKind
from sfumato.adapters.layers.layer import NO_DROPOUTS, Dropouts, Strength, per_sample
from sfumato.adapters.layers.rotation import turn_of, turned
from sfumato.errors import UserError
from sfumato.models.interface.targets import AdapterTarget

PREFIX = "oft_"
DEFAULT_CONSTRAINT = 1e-3


class Oft(nn.Module):
    """An OFT of one Linear or Conv2d; fused projections can be turned apart."""

    def __init__(
        self,
        target: AdapterTarget,
        num_blocks: int,
        constraint: float = DEFAULT_CONSTRAINT,
        dropouts: Dropouts = NO_DROPOUTS,
        splits: tuple[int, ...] | None = None,
    ) -> None:
        """Make an untrained OFT, which changes nothing.

        Args:
            target: the layer to adapt.
            num_blocks: blocks of each projection; must divide its width. Fewer blocks learn more.
            constraint: the norm that a projection's Q may have, divided by its width; stored as `alpha`. With
                0 the layer is off.
            dropouts: only that of whole layers is used.
            splits: output widths of the fused projections; None stores the layer's blocks as one tensor, an
                empty tuple as a list of one.
        """
        super().__init__()
        self.name = PREFIX + target.name
        self.target = target
        self.strength: Strength = 1.0
        self.dropouts = dropouts
        self.num_blocks = num_blocks
        widths = splits or (dense.shape_of(target.module)[0],)
        if any(width % num_blocks for width in widths):
            raise ValueError(f"{self.name}: {num_blocks} blocks do not divide {widths}")
        blocks = [
            nn.Parameter(torch.zeros(num_blocks, width // num_blocks, width // num_blocks))
            for width in widths
        ]
        self.oft_blocks = blocks[0] if splits is None else nn.ParameterList(blocks)
        self.alpha: Tensor
        self.register_buffer("alpha", torch.tensor(constraint))
        self._read_alpha()
        self.register_load_state_dict_post_hook(lambda *_: self._read_alpha())

    @classmethod
    def from_tensors(cls, target: AdapterTarget, tensors: Tensors, dropouts: Dropouts = NO_DROPOUTS) -> Oft:
        """Make an untrained OFT of the blocks and the constraint that a file has."""
        is_list = "oft_blocks.0" in tensors
        num_blocks = tensors["oft_blocks.0" if is_list else "oft_blocks"].shape[0]
        alpha = tensors.get("alpha")
        constraint = DEFAULT_CONSTRAINT if alpha is None else alpha.item()
        if constraint < 0:
            raise UserError(
                f"{PREFIX}{target.name} has an alpha of {constraint:g}, which limits how far it turns; use a "
                "file in which it is 0 or more"
            )
        splits = target.splits if is_list else None
        widths = splits or (dense.shape_of(target.module)[0],)
        if any(width % num_blocks for width in widths):
            raise UserError(
                f"{PREFIX}{target.name} has {num_blocks} blocks, which do not divide this model's "
                f"{widths[0]} outputs; use a file made for this model"
            )
        return cls(target, num_blocks, constraint, dropouts, splits)

    @property
    def is_off(self) -> bool:
        """Whether alpha is 0, so that the layer changes nothing and learns nothing."""
        return self._constraint == 0

    def change(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return `output` with its blocks turned; see `AdapterLayer`."""
        if self.is_off or (isinstance(self.strength, float | int) and self.strength == 0):
            return output
        # Drawn on the CPU: the decision must not make the device wait.
        if self.training and self.dropouts.module and torch.rand(()).item() < self.dropouts.module:
            return output
        is_conv = isinstance(self.target.module, nn.Conv2d)
        own = output.movedim(1, -1) if is_conv else output
        bias = self.target.module.bias
        if isinstance(bias, Tensor):
            own = own - bias.to(own.dtype)
        turns = [turn.to(own.dtype) for turn in self._turns()]
        widths = [turn.shape[0] * turn.shape[1] for turn in turns]
        with torch.autocast(own.device.type, enabled=False):
            moved = [turned(*pair) for pair in zip(turns, own.split(widths, -1), strict=True)]
        change = torch.cat(moved, -1) if len(moved) > 1 else moved[0]
        change = change.movedim(-1, 1) if is_conv else change
        return output + change * per_sample(self.strength, change)

    def delta(self) -> Tensor:
        """Return the change of the layer's weight at strength 1, shaped like the weight, in float32."""
        turns = self._turns()
        weight = self.target.module.get_parameter("weight").to(turns[0].device, torch.float32)
        pieces = weight.flatten(1).split([turn.shape[0] * turn.shape[1] for turn in turns])
        moved = [turned(turn, piece.T).T for turn, piece in zip(turns, pieces, strict=True)]
        return torch.cat(moved).reshape(weight.shape)

    @torch.no_grad()
    def turned_share(self) -> Tensor:
        """Return the expected share; see `TurnsWeight`.

        It is |R - I| / sqrt(outputs), in Frobenius' norm: exactly that if the weight's rows are orthogonal
        and of one length.
        """
        turns = self._turns()
        width = sum(turn.shape[0] * turn.shape[1] for turn in turns)
        return torch.stack([turn.norm() for turn in turns]).norm() / math.sqrt(width)

    def plus_parameters(self) -> list[nn.Parameter]:
        """Return nothing: LoRA+ says nothing about rotations."""
        return []

    def extra_repr(self) -> str:
        """Return the shape of the adapter for printing."""
        return (
            f"{self.name}, blocks={[tuple(p.shape) for p in self.parameters()]}, alpha={self._constraint:g}"
        )

    def _read_alpha(self) -> None:
        """Read alpha once: reading it in every step would make the device wait."""
        self._constraint = float(self.alpha.item())

    def _turns(self) -> list[Tensor]:
        """Return R - I of each projection's blocks: (blocks, size, size), in float32."""
        with torch.autocast(self.alpha.device.type, enabled=False):
            return [_turn(blocks.float(), self._constraint) for blocks in self.parameters()]


def _turn(blocks: Tensor, constraint: float) -> Tensor:
    """Return R - I of (blocks, size, size), after its skew part was scaled down to the constraint."""
    if constraint == 0:
        return torch.zeros_like(blocks)
    skew = blocks - blocks.mT
    norm = torch.linalg.vector_norm(skew)
    limit = constraint * blocks.shape[0] * blocks.shape[1]
    skew = skew * ((norm.clamp(max=limit) + 1e-8) / (norm + 1e-8))  # sd-scripts' way not to divide by 0
    return turn_of(skew, limit / math.sqrt(2))  # eigenvalues of Q come in pairs +-i


@dataclass(frozen=True)
class OftArguments:
    """How an OFT is made.

    Attributes:
        rank: number of blocks of each projection.
        alpha: the constraint; None is the usual one.
        is_list: store the blocks of each projection apart.
    """

    rank: int = 4
    alpha: float | None = None
    is_list: bool = False


def _make(target: AdapterTarget, arguments: OftArguments, dropouts: Dropouts) -> Oft:
    constraint = DEFAULT_CONSTRAINT if arguments.alpha is None else arguments.alpha
    splits = target.splits if arguments.is_list else None
    return Oft(target, arguments.rank, constraint, dropouts, splits)


KIND = AdapterKind(
    name="oft",
    title="OFT",
    description="an OFT network",
    prefix=PREFIX,
    arguments=OftArguments,
    make=_make,
    dropouts=("module",),
    files=FileForm(
        marks=("oft_blocks", "oft_blocks.0"),
        load=Oft.from_tensors,
        tensors=r"oft_blocks(\.\d+)?",
        blocks=("oft_blocks",),
        needs_weight=True,
    ),
)
