"""Deep shrink: features are shrunk inside the UNet while an image's composition forms.

A model that was trained at 512 pixels then composes a larger image as if it were small, and does not repeat
its subject. Features get their full size back where the second half of the UNet meets what the first kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from sfumato.errors import UserError
from sfumato.models.interface.family import HasUnet
from sfumato.sampling.effects.clock import Clock
from sfumato.sampling.plan import Plan
from sfumato.sampling.settings.deep_shrink import DeepShrink

logger = logging.getLogger(__name__)


@contextmanager
def deep_shrink(plan: Plan) -> Iterator[Plan]:
    """Shrink features while a batch is sampled, as its requests say.

    Raises:
        UserError: the model is no UNet.
    """
    settings, family = plan.requests[0].deep_shrink, plan.family
    if settings is None:
        yield plan
        return
    if not isinstance(family, HasUnet):
        raise UserError("deep_shrink is for models that are UNets; leave it out")
    clock, depths = Clock(plan.space.timestep), family.depths(plan.model)
    for depth in (settings.depth_1, settings.depth_2):
        if depth is not None and depth >= len(depths):
            logger.warning("deep shrink at depth %d has no effect: use 0 to %d", depth, len(depths) - 1)
    with shrinking(plan.model, depths, settings, clock.now):
        yield replace(plan, guides=(*plan.guides, clock))


@contextmanager
def shrinking(
    model: nn.Module, depths: Sequence[nn.Module], settings: DeepShrink, timestep: Callable[[], float]
) -> Iterator[None]:
    """Let a UNet of diffusers shrink its features within the block, as the settings say.

    Args:
        depths: the model's modules before which features can be shrunk, by depth; see `HasUnet`.
        timestep: of the step that is made, in [0, 1000].
    """
    unet = cast(Any, model)
    with ExitStack() as hooks:
        for depth, module in enumerate(depths):
            hook = _shrink_before(module, settings, depth, timestep)
            hooks.callback(hook.remove)
        for block in unet.up_blocks:
            for hook in _fit_to_skips(block):
                hooks.callback(hook.remove)
        for hook in _keep_size(model, unet.conv_norm_out):
            hooks.callback(hook.remove)
        yield


def is_shrunk(settings: DeepShrink, depth: int, timestep: float) -> bool:
    """Return whether features are shrunk before the block of a depth."""
    if depth == settings.depth_1 and timestep >= settings.timesteps_1:
        return True
    return depth == settings.depth_2 and settings.timesteps_2 <= timestep < settings.timesteps_1


def resized(features: Tensor, size: Sequence[int] | None = None, ratio: float | None = None) -> Tensor:
    """Return features, (B, C, h, w), of another size by bicubic interpolation, computed in float32.

    Args:
        size: (height, width), or None where `ratio` of the sides is given.
    """
    found = functional.interpolate(
        features.float(), size=None if size is None else list(size), scale_factor=ratio, mode="bicubic"
    )
    return found.to(features.dtype)


def fitted(features: Tensor, like: Tensor) -> Tensor:
    """Return features, (B, C, h, w), in the size of others; those that have it are left alone."""
    size = like.shape[-2:]
    return features if features.shape[-2:] == size else resized(features, size)


def _shrink_before(
    module: nn.Module, settings: DeepShrink, depth: int, timestep: Callable[[], float]
) -> RemovableHandle:
    def shrink(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        if not is_shrunk(settings, depth, timestep()):
            return inputs
        return resized(inputs[0], ratio=settings.ratio), *inputs[1:]

    return module.register_forward_pre_hook(shrink)


def _fit_to_skips(block: Any) -> Iterator[RemovableHandle]:
    """Give features the size of the skip that each layer of a block of the second half joins to them."""
    skips: list[Tensor] = []

    def enter(_: nn.Module, args: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        *others, first = named["res_hidden_states_tuple"]
        skips[:] = others
        return args, {**named, "hidden_states": fitted(named["hidden_states"], first)}

    def leave_layer(_: nn.Module, inputs: Any, output: Any) -> Any:
        if not skips:
            return output
        skip = skips.pop()
        return fitted(output, skip) if isinstance(output, torch.Tensor) else (fitted(output[0], skip),)

    yield block.register_forward_pre_hook(enter, with_kwargs=True)
    for layer in getattr(block, "attentions", block.resnets):
        yield layer.register_forward_hook(leave_layer)


def _keep_size(model: nn.Module, end: nn.Module) -> Iterator[RemovableHandle]:
    """Give the last features the size of what the model was shown, should the first have been shrunk."""
    shown: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shown[:] = inputs[:1]

    def fit(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return fitted(inputs[0], shown.pop()), *inputs[1:]

    yield model.register_forward_pre_hook(note)
    yield end.register_forward_pre_hook(fit)
