"""The effects that a request asks for."""

from __future__ import annotations

from sfumato.sampling.effects.deep_shrink import deep_shrink
from sfumato.sampling.effects.gradual_latent import gradual_latent
from sfumato.sampling.plan import Effect
from sfumato.sampling.request import Request


def effects_for(request: Request) -> list[Effect]:
    """Return the effects of requests that are sampled at once, in the order in which they enter."""
    asked = {deep_shrink: request.deep_shrink, gradual_latent: request.gradual_latent}
    return [effect for effect, settings in asked.items() if settings is not None]
